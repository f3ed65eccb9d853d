"""Compiles a CUDA source at first use and loads it: nothing is needed but the torch wheel.

`compiler` turns a source into machine code, and `driver` launches what is in it; `load` joins them.
"""

import functools
from pathlib import Path

import torch

from .compiler import THREADS, architectures, compile, nvrtc
from .driver import Module

__all__ = ["THREADS", "Module", "architectures", "compile", "load", "nvrtc"]


@functools.cache
def load(source: Path, definitions: tuple[tuple[str, object], ...], index: int) -> Module:
    """`source`, compiled with these macros for device `index`; once in a process."""
    major, minor = torch.cuda.get_device_capability(index)
    return Module(compile(source, dict(definitions), 10 * major + minor), index)
