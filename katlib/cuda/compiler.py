"""Compiles CUDA sources with NVRTC, the compiler library that comes with PyTorch's CUDA builds.

It needs no nvcc, no C++ compiler and no GPU: NVRTC compiles for any device. The library is called
through ctypes.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch

# threads in the largest block; the sources see it as a macro
THREADS = 256
# ftz flushes subnormal numbers to zero; without it a reciprocal costs four more instructions
OPTIONS = ("--std=c++17", "--ftz=true")
# CUDA's major version, for which this PyTorch was built
MAJOR = (torch.version.cuda or "none").split(".")[0]


def _installations() -> Iterator[Path]:
    """The folders in which CUDA may be installed, in the order in which to search them."""
    nvidia = find_spec("nvidia")
    for wheels in (nvidia.submodule_search_locations if nvidia else None) or ():
        # one folder since CUDA 13, before that one for each library
        yield Path(wheels, f"cu{MAJOR}")
        yield Path(wheels, "cuda_nvrtc")
        yield Path(wheels, "cuda_runtime")
    yield Path(torch.__file__).parent
    # conda's environment, on Linux and on Windows
    yield Path(sys.prefix)
    yield Path(sys.prefix, "targets/x86_64-linux")
    yield Path(sys.prefix, "Library")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if name in os.environ:
            yield Path(os.environ[name])
    yield Path("/usr/local/cuda")
    triton = find_spec("triton")
    if triton and triton.origin:
        yield Path(triton.origin).parent / "backends/nvidia"


def _find(*patterns: str) -> list[Path]:
    """The files of CUDA that match one of these patterns, in all installations."""
    return [
        path
        for folder in _installations()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        # NVIDIA's wheels bring a second build of NVRTC, which is not meant
        if ".alt." not in path.name
    ]


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """NVRTC, loaded.

    Raises:
        OSError: it is not there, or not for this PyTorch's version of CUDA.
    """
    installed = _find(
        f"lib/libnvrtc.so.{MAJOR}*",
        f"lib64/libnvrtc.so.{MAJOR}*",
        f"lib/libnvrtc-*.so.{MAJOR}*",
        f"*/nvrtc64_{MAJOR}*_0.dll",
    )
    # by name alone, the system looks in its own folders
    by_name = (f"libnvrtc.so.{MAJOR}", f"nvrtc64_{MAJOR}0_0.dll")
    for candidate in (*map(str, installed), *by_name):
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise OSError(f"NVRTC for CUDA {MAJOR}, which comes with PyTorch's CUDA builds, was not found")


@functools.cache
def _headers() -> Path:
    """The folder of CUDA's headers."""
    found = _find("include/cuda_bf16.h")
    if not found:
        raise OSError(
            "cuda_bf16.h was not found; it comes with PyTorch's CUDA builds "
            "(package nvidia-cuda-runtime) and with triton"
        )
    return found[0].parent


@functools.cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities for which this NVRTC makes machine code; 90 is 9.0."""
    count = ctypes.c_int()
    nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc().nvrtcGetSupportedArchs(known)
    return tuple(known)


def _target(arch: int) -> str:
    """What NVRTC is asked for: machine code, or PTX of the newest device it knows below `arch`."""
    if arch in architectures():
        return f"sm_{arch}"
    older = [known for known in architectures() if known < arch]
    return f"compute_{max(older, default=arch)}"


class _Program:
    """One source inside NVRTC. Every call that fails raises a RuntimeError with the compiler's log.

    Args:
        source: the file.
        arch: the compute capability; used in error messages only.
    """

    handle: ctypes.c_void_p

    def __init__(self, source: Path, arch: int) -> None:
        self.title = f"{source.name} for {arch}"
        self.handle = ctypes.c_void_p()
        text, name = source.read_bytes(), source.name.encode()
        created = ctypes.byref(self.handle)
        self._check(nvrtc().nvrtcCreateProgram(created, text, name, 0, None, None))

    def compile(self, options: list[str]) -> None:
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        # NVRTC 12.4 leaves the locale C in the thread that it ran in, where Python would then read
        # files as ASCII. So it gets a thread of its own.
        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(nvrtc().nvrtcCompileProgram, self.handle, len(options), encoded)
            self._check(run.result())

    def result(self, form: str) -> bytes:
        """The compiled code; `form` is CUBIN (machine code) or PTX."""
        size = ctypes.c_size_t()
        self._check(getattr(nvrtc(), f"nvrtcGet{form}Size")(self.handle, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        self._check(getattr(nvrtc(), f"nvrtcGet{form}")(self.handle, code))
        return code.raw

    def destroy(self) -> None:
        nvrtc().nvrtcDestroyProgram(ctypes.byref(self.handle))

    def _log(self) -> str:
        size = ctypes.c_size_t()
        nvrtc().nvrtcGetProgramLogSize(self.handle, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value + 1)
        nvrtc().nvrtcGetProgramLog(self.handle, log)
        return log.value.decode()

    def _check(self, status: int) -> None:
        if status:
            error = nvrtc().nvrtcGetErrorString(status).decode()
            raise RuntimeError(f"NVRTC, {self.title}: {error}\n{self._log()}")


def compile(source: Path, definitions: dict[str, object], arch: int) -> bytes:
    """Compiles a CUDA source for one kind of device.

    Args:
        source: the file. It may include CUDA's headers and files of its own folder.
        definitions: macros by name.
        arch: compute capability; 90 is 9.0.

    Returns:
        Machine code (a cubin), or PTX where NVRTC does not know so new a device; the driver then
        compiles that.

    Raises:
        OSError: NVRTC or CUDA's headers are missing.
        RuntimeError: the source does not compile; the message holds the compiler's.
    """
    options = [
        *OPTIONS,
        f"--gpu-architecture={_target(arch)}",
        f"-I{_headers()}",
        f"-I{source.parent}",
        f"-DTHREADS={THREADS}",
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    program = _Program(source, arch)
    try:
        program.compile(options)
        return program.result("CUBIN" if arch in architectures() else "PTX")
    finally:
        program.destroy()
