"""CUDA sources compiled at first use, by NVRTC, and launched through the driver: no nvcc, no C++ compiler, nothing but the torch wheel.

Both libraries are called through ctypes. Recent versions of PyTorch have a binding of their own (`torch.cuda._compile_kernel`), but it
is private, passes integers as 32 bits only, and packs the arguments of a launch one object at a time.
"""

import ctypes
import functools
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch

THREADS = 256  # in the largest block; the sources see it as a macro
OPTIONS = (
    "--std=c++17",
    "--ftz=true",
)  # ftz: flush subnormals to zero; without it a reciprocal costs four more instructions
LIBCUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR = (torch.version.cuda or "none").split(".")[0]


def _find(*patterns: str) -> list[Path]:
    """Files of CUDA's, wherever they may be: in NVIDIA's wheels, torch's own, conda, a system-wide toolkit, triton's wheel."""
    folders = []
    for wheel in getattr(find_spec("nvidia"), "submodule_search_locations", None) or ():
        folders += [
            f"{wheel}/cu{MAJOR}",
            f"{wheel}/cuda_nvrtc",
            f"{wheel}/cuda_runtime",
        ]  # since CUDA 13; and before
    folders += [
        Path(torch.__file__).parent,
        sys.prefix,
        f"{sys.prefix}/targets/x86_64-linux",
        f"{sys.prefix}/Library",
    ]
    folders += [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + [
        "/usr/local/cuda"
    ]
    if triton := find_spec("triton"):
        folders.append(Path(triton.origin).parent / "backends/nvidia")
    return [
        path
        for folder in folders
        for pattern in patterns
        for path in sorted(Path(folder).glob(pattern))
        if ".alt." not in path.name
    ]


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    patterns = (
        f"lib/libnvrtc.so.{MAJOR}*",
        f"lib64/libnvrtc.so.{MAJOR}*",
        f"lib/libnvrtc-*.so.{MAJOR}*",
        f"*/nvrtc64_{MAJOR}*_0.dll",
    )
    for name in [
        *_find(*patterns),
        f"libnvrtc.so.{MAJOR}",
        f"nvrtc64_{MAJOR}0_0.dll",
    ]:  # the last two: wherever the system looks
        try:
            library = ctypes.CDLL(str(name))
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise OSError(f"NVRTC for CUDA {MAJOR}, which comes with PyTorch's CUDA builds, was not found")


@functools.cache
def _include() -> Path:
    headers = _find("include/cuda_bf16.h")
    if not headers:
        raise OSError(
            "cuda_bf16.h was not found; it comes with PyTorch's CUDA builds (package nvidia-cuda-runtime) and with triton"
        )
    return headers[0].parent


@functools.cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities for which this NVRTC makes machine code; 90 is 9.0."""
    count = ctypes.c_int()
    _nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    _nvrtc().nvrtcGetSupportedArchs(known)
    return tuple(known)


def compile(source: Path, definitions: dict[str, object], arch: int) -> bytes:
    """`source` as machine code for compute capability `arch` (90 is 9.0), or as PTX where NVRTC does not know so new a device."""
    nvrtc = _nvrtc()

    def check(status: int) -> None:
        if status:
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value + 1)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(
                f"NVRTC, {source.name} for {arch}: {nvrtc.nvrtcGetErrorString(status).decode()}\n{log.value.decode()}"
            )

    program = ctypes.c_void_p()
    exact = arch in architectures()
    target = (
        f"sm_{arch}"
        if exact
        else f"compute_{max((a for a in architectures() if a < arch), default=arch)}"
    )
    options = [
        *OPTIONS,
        f"--gpu-architecture={target}",
        f"-I{_include()}",
        f"-I{source.parent}",
        f"-DTHREADS={THREADS}",
    ]
    options += [f"-D{name}={value}" for name, value in definitions.items()]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None
        )
    )
    try:
        with (
            ThreadPoolExecutor(1) as thread
        ):  # NVRTC 12.4 leaves its thread the locale C, in which Python reads files as ASCII
            check(thread.submit(nvrtc.nvrtcCompileProgram, program, len(options), array).result())
        size = ctypes.c_size_t()
        kind = "CUBIN" if exact else "PTX"
        check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        check(getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@functools.cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL(LIBCUDA)
    word, pointer = ctypes.c_uint, ctypes.c_void_p
    driver.cuLaunchKernel.argtypes = [pointer, *[word] * 7, pointer, pointer, pointer]
    driver.cuCtxPushCurrent_v2.argtypes = [pointer]
    return driver


def _check(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {(text.value or b'unknown error').decode()} ({status})")


class _Extra(ctypes.Structure):
    """The `extra` of cuLaunchKernel: CU_LAUNCH_PARAM_BUFFER_POINTER, it, CU_LAUNCH_PARAM_BUFFER_SIZE, a pointer to it, CU_LAUNCH_PARAM_END."""

    _fields_ = [
        ("pointer", ctypes.c_void_p),
        ("parameters", ctypes.c_char_p),
        ("size", ctypes.c_void_p),
        ("bytes", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
    ]


class Module:
    """A compiled source on one device.

    Its device's primary context, which is PyTorch's too, is pushed for the time of a call: a thread that has not called the CUDA
    runtime yet has no context, and another may be busy with another device.
    """

    def __init__(self, code: bytes, index: int):
        self.index, self.functions, self.driver, self.popped = (
            index,
            {},
            _driver(),
            ctypes.c_void_p(),
        )
        self.multiprocessors = torch.cuda.get_device_properties(
            index
        ).multi_processor_count  # initialises CUDA as well
        self.handle, self.context, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        _check(self.driver.cuDeviceGet(ctypes.byref(device), index))
        _check(self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), device))
        self._call("cuModuleLoadData", ctypes.byref(self.handle), code)

    def _call(self, name: str, *arguments) -> None:
        driver = self.driver
        _check(driver.cuCtxPushCurrent_v2(self.context))
        try:
            _check(getattr(driver, name)(*arguments))
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(self.popped))

    def _function(self, name: str) -> tuple[ctypes.c_void_p, int]:
        if name not in self.functions:
            function, blocks = ctypes.c_void_p(), ctypes.c_int()
            self._call("cuModuleGetFunction", ctypes.byref(function), self.handle, name.encode())
            self._call(
                "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                ctypes.byref(blocks),
                function,
                THREADS,
                ctypes.c_size_t(0),
            )
            self.functions[name] = function, blocks.value * THREADS
        return self.functions[name]

    def threads(self, name: str) -> int:
        """The threads of this kernel that one multiprocessor holds at once."""
        return self._function(name)[1]

    def launch(self, name: str, grid: tuple[int, int], block: int, layout: str, *arguments) -> None:
        """Queues a kernel on the current stream. `layout` says how the arguments lie in memory, in the letters of `struct`."""
        parameters = struct.pack(
            layout, *[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        )
        size = ctypes.c_size_t(len(parameters))
        extra = _Extra(1, parameters, 2, ctypes.addressof(size), None)
        stream = torch.cuda.current_stream(self.index).cuda_stream
        self._call(
            "cuLaunchKernel",
            self._function(name)[0],
            *grid,
            1,
            block,
            1,
            1,
            0,
            stream,
            None,
            ctypes.byref(extra),
        )


@functools.cache
def load(source: Path, definitions: tuple[tuple[str, object], ...], index: int) -> Module:
    """`source` compiled with these macros for device `index`; once in a process."""
    major, minor = torch.cuda.get_device_capability(index)
    return Module(compile(source, dict(definitions), 10 * major + minor), index)
