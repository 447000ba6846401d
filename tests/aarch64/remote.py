"""A pytest plugin under which ``thawkit._C`` is another architecture's build, run by an emulator.

``THAWKIT_SERVER`` is the command that serves it. Tensors lie in memory that both processes have mapped, by
the preloaded library of arena.cpp, and calls go through pipes.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from thawkit.errors import ThawkitError


class Server:
    """The other process, and what its functions are called with."""

    def __init__(self, command: list[str]) -> None:
        arena = ctypes.CDLL(None).thawkit_arena()
        if arena < 0:
            raise RuntimeError("the memory that is to be shared cannot be had")
        self._process = subprocess.Popen(
            [*command, str(arena)],
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(arena,),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()

    def module(self) -> ModuleType:
        """Return a module with the server's functions and numbers."""
        module = ModuleType("thawkit._C")
        for _ in range(self._result()):
            name = self._result()
            setattr(module, name, self._result())
        for name in [self._result() for _ in range(self._result())]:
            setattr(module, name, self._function(name))
        return module

    def _function(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            message = _length(name) + name.encode() + b"".join(map(_encoded, arguments))
            with self._lock:
                self._to.write(len(message).to_bytes(8, "little") + message)
                self._to.flush()
                return self._result()

        return call

    def _result(self) -> Any:
        head = self._from.read(9)
        if len(head) < 9:
            raise RuntimeError(f"the server ended with status {self._process.wait()}")
        kind, eight = head[:1], head[1:]
        if kind == b"f":
            return struct.unpack("<d", eight)[0]
        (whole,) = struct.unpack("<q", eight)
        if kind in b"se":
            text = self._from.read(whole).decode()
            if kind == b"e":
                raise ValueError(text)
            return text
        return {b"n": None, b"b": bool(whole), b"i": whole}[kind]


def _encoded(value: Any) -> bytes:
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value)
    if isinstance(value, list | tuple):
        return _length(value) + b"".join(map(_encoded, value))
    return b"i" + (int(value) & (1 << 64) - 1).to_bytes(8, "little")


def _length(items: Sequence[Any]) -> bytes:
    return b"l" + len(items).to_bytes(8, "little")


def _no_blas(*addresses: int) -> None:
    raise ThawkitError("functions of this process cannot be called in another one")


def pytest_configure() -> None:
    """Put the server's module where the package looks for its own."""
    module = Server(shlex.split(os.environ["THAWKIT_SERVER"])).module()
    module.set_blas = _no_blas  # type: ignore[attr-defined]
    sys.modules["thawkit._C"] = module
