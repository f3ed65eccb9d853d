"""Loads compiled CUDA code and launches its kernels, through the driver's library and ctypes.

Recent versions of PyTorch have a binding of their own (`torch.cuda._compile_kernel`), but it is
private, passes integers as 32 bits only, and packs the arguments of a launch one object at a time.
"""

import ctypes
import functools
import re
import struct
import sys
from typing import NamedTuple

import torch

from .compiler import THREADS

LIBCUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# in cuLaunchKernel's list `extra`: what the pointer that follows is, and the end of the list
BUFFER_POINTER, BUFFER_SIZE, END = 1, 2, None


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
    """cuLaunchKernel's list `extra`: where the buffer of the arguments is, and how long it is."""

    _fields_ = (
        ("pointer_follows", ctypes.c_void_p),
        ("pointer", ctypes.c_char_p),
        ("size_follows", ctypes.c_void_p),
        ("size", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
    )


class _Kernel(NamedTuple):
    function: ctypes.c_void_p
    # threads that one multiprocessor holds at once
    threads: int


def kernel_names(code: bytes) -> list[str]:
    """The kernels in compiled code: in a cubin each is a section .text.NAME, in PTX an entry.

    Example:
        >>> kernel_names(b".visible .entry forward(")
        ['forward']
    """
    names = re.findall(rb"(?:\.text\.|\.entry\s+)(\w+)", code)
    return sorted({name.decode() for name in names})


class Module:
    """Compiled code, loaded on one device, with all of its kernels.

    A kernel is not fetched at its first launch, because that may be within the capture of a CUDA
    graph, where the driver refuses it.

    Every call runs in the device's primary context, which is PyTorch's too. Mostly it is current
    already. Where it is not, it is pushed for the time of the call only: a thread that has not
    called the CUDA runtime yet has no context, and another thread may be busy with another device.

    Args:
        code: a cubin or PTX, from `katlib.cuda.compiler.compile`.
        index: the device's number, as in torch.device("cuda", index).
    """

    index: int
    multiprocessors: int
    _handle: ctypes.c_void_p
    _context: ctypes.c_void_p
    _popped: ctypes.c_void_p
    _kernels: dict[str, _Kernel]

    def __init__(self, code: bytes, index: int) -> None:
        self.index = index
        self._driver = _driver()
        self._handle = ctypes.c_void_p()
        self._context = ctypes.c_void_p()
        # a place for what cuCtxPopCurrent returns; nobody reads it
        self._popped = ctypes.c_void_p()
        # this also initialises CUDA, so it comes before the first call of the driver
        self.multiprocessors = torch.cuda.get_device_properties(index).multi_processor_count
        device = ctypes.c_int()
        _check(self._driver.cuDeviceGet(ctypes.byref(device), index))
        _check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device))
        self._call("cuModuleLoadData", ctypes.byref(self._handle), code)
        self._kernels = {name: self._fetch(name) for name in kernel_names(code)}

    def threads(self, name: str) -> int:
        """How many threads of this kernel one multiprocessor holds at once."""
        return self._kernels[name].threads

    def launch(self, name: str, grid: tuple[int, int], block: int, layout: str, *arguments) -> None:
        """Queues a kernel on PyTorch's current stream.

        Args:
            name: of the kernel.
            grid: blocks in x and y.
            block: threads in a block.
            layout: the types of the kernel's parameters, in the letters of `struct`.
            arguments: numbers, and tensors in the place of pointers.
        """
        # asked in this way round because isinstance(number, torch.Tensor) takes long
        values = [a if type(a) is int else a.data_ptr() for a in arguments]
        parameters = struct.pack(layout, *values)
        size = ctypes.c_size_t(len(parameters))
        extra = _Extra(BUFFER_POINTER, parameters, BUFFER_SIZE, ctypes.addressof(size), END)
        stream = torch.cuda.current_stream(self.index).cuda_stream
        function = self._kernels[name].function
        dimensions = (*grid, 1, block, 1, 1)
        shared_bytes = 0
        self._call(
            "cuLaunchKernel",
            function,
            *dimensions,
            shared_bytes,
            stream,
            None,
            ctypes.byref(extra),
        )

    def _fetch(self, name: str) -> _Kernel:
        function, blocks = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._handle, name.encode())
        self._call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            ctypes.byref(blocks),
            function,
            THREADS,
            ctypes.c_size_t(0),
        )
        return _Kernel(function, blocks.value * THREADS)

    def _call(self, name: str, *arguments) -> None:
        driver, current = self._driver, ctypes.c_void_p()
        driver.cuCtxGetCurrent(ctypes.byref(current))
        if current.value == self._context.value:
            _check(getattr(driver, name)(*arguments))
            return
        _check(driver.cuCtxPushCurrent_v2(self._context))
        try:
            _check(getattr(driver, name)(*arguments))
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(self._popped))
