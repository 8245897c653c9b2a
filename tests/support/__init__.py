"""What tests share: made data, made networks, tolerances, golden values."""
