"""CUDA C++ run on a CPU: ``csrc/cuda`` built by a C++ compiler, and checked at every access to memory."""

from .build import Build, missing_tool
from .host import Host

__all__ = ["Build", "Host", "missing_tool"]
