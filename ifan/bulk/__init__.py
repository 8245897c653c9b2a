"""Many photos and clips: tables and shards that survive a kill, and Ray."""
