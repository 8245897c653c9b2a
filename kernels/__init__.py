"""Triton kernels, one file an operation; installed as ``ifan.kernels``."""
