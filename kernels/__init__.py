"""Triton kernels, installed as ``thawkit.kernels``: pointers, shapes and numbers only."""
