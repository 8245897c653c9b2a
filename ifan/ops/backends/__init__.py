"""Calls of the kernels of each backend: memory is allocated here, and addresses go down."""
