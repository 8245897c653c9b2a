"""The network as a graph for other runtimes."""
