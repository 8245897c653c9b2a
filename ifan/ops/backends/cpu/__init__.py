"""Calls of the native CPU kernels (``csrc/cpu``, module ``ifan._cpu``), one file an operation."""
