"""Proving Triton kernels without a GPU: a mended interpreter, compiling without a driver, reading cubins."""
