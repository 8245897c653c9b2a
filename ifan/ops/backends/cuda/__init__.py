"""Calls of the CUDA kernels (``csrc/cuda``, module ``ifan._cuda``), one file an operation.

Each has the ``forward`` and ``backward`` that the Triton kernels have. Memory is allocated here, addresses and the
current stream go down as integers, and nothing waits for the GPU.
"""
