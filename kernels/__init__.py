"""Triton kernels, one file an operation; installed as ``ifan.kernels``. Its modules need Triton, this file does not."""
