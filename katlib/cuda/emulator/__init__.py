"""Runs CUDA sources on the CPU: g++ and emulator.h take the place of NVRTC and the driver.

`load` compiles a source, and `emulation` lets katlib's own host code run on the CPU: the choice of
a variant, the launch plan, the packing of arguments. The emulator also checks what a GPU would not
tell. Results hold NaN until they are written, and have margins in which nothing may be written.
Every kernel runs twice, with its threads and blocks in opposite orders, and must give the same bits
both times. On request, every access to memory is watched for races. Atomic additions are counted.

It knows as much of CUDA as katlib's kernels use, and it needs Linux and g++.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import torch

from katlib.files import write_whole

from .. import jit

HERE = Path(__file__).parent
# .ci/sanitized has others
FLAGS = os.environ.get("KATLIB_EMULATOR_FLAGS", "-O1").split()
# watches every access to memory, see races.cpp
RACE_FLAGS = ("-O1", "-DWATCH_RACES", "-fsanitize=thread", "-fno-threadsafe-statics")
USER = os.getuid() if hasattr(os, "getuid") else 0
BUILT = Path(tempfile.gettempdir()) / f"katlib-emulator-{USER}"
# elements before and after each result
MARGIN = 64


class Launched(list[str]):
    """The names of the kernels that were launched, in order.

    `atomics` counts their atomic additions: those to "global" and those to "shared" memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.atomics: Counter[str] = Counter()


def load(
    source: str,
    definitions: Mapping[str, object] | None = None,
    folder: Path | None = None,
    races: bool = False,
    ordered: bool = True,
) -> Emulated:
    """Compiles the text of a CUDA source for the CPU.

    Args:
        source: the text.
        definitions: macros by name.
        folder: where the files are that it includes.
        races: whether a kernel with a race is an error, which makes it ten times as slow.
        ordered: whether results must not depend on the order in which threads and blocks run.

    Returns:
        The kernels, to be launched as those of `katlib.cuda.jit.load`.

    Raises:
        OSError: there is no g++ here, or this is not Linux.
        RuntimeError: the source does not compile; the message holds the compiler's.

    Example:
        >>> import torch
        >>> from katlib.cuda import emulator
        >>> text = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }'
        >>> x = torch.ones(32)
        >>> emulator.load(text).launch("twice", (1, 1), 32, "P", x)
        >>> x.sum()
        tensor(64.)
    """
    BUILT.mkdir(exist_ok=True, mode=0o700)
    path = BUILT / (hashlib.sha256(source.encode()).hexdigest()[:24] + ".cu")
    if not path.exists():
        with write_whole(path) as temporary:
            temporary.write_text(source, encoding="utf-8")
    library = build(path, dict(definitions or {}), races, folder)
    return Emulated(library, 2, 512, ordered)


def build(
    source: Path,
    definitions: dict[str, object],
    races: bool = False,
    folder: Path | None = None,
) -> ctypes.CDLL:
    """The source as a shared library, kept between runs under a hash of all that goes into it.

    Args:
        source, definitions: as for `katlib.cuda.jit.compile`.
        races: whether a kernel with a race is an error, which makes it ten times as slow.
        folder: where the files are that it includes; by default its own folder.
    """
    folder = folder or source.parent
    text = source.read_text(encoding="utf-8")
    kernel = r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\(\))*\)\s+)?(\w+)"
    entries = " ".join(f"KERNEL({name})" for name in re.findall(kernel, text))
    program = f'#include "emulator.h"\n#include "{source}"\nEMULATOR_ENTRY({entries})\n'
    # g++ has one sanitizer at a time
    flags = RACE_FLAGS if races else FLAGS
    options = [
        *("-std=c++20", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror", *flags),
        f"-DTHREADS={jit.THREADS}",
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    headers = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp"), *folder.glob("*.cuh")])
    parts = [entries, *options, text, *(path.read_text("utf-8") for path in headers)]
    target = BUILT / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24] + ".so")
    if not target.exists():
        BUILT.mkdir(exist_ok=True, mode=0o700)
        _compile(program, [*options, f"-I{HERE}", f"-I{folder}"], target, races)
    library = ctypes.CDLL(str(target))
    library.emulated_atomics.restype = ctypes.c_ulonglong
    library.emulate.restype = ctypes.c_char_p
    library.emulate.argtypes = [
        ctypes.c_char_p,
        *[ctypes.c_uint] * 3,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return library


def _compile(program: str, options: list[str], target: Path, races: bool) -> None:
    if not races:
        with write_whole(target) as temporary:
            _run_compiler(program, [*options, "-o", str(temporary)])
        return
    # -fsanitize=thread is for the compiler alone: the linker would bring its run-time library
    with tempfile.TemporaryDirectory() as folder, write_whole(target) as temporary:
        watched = Path(folder) / "kernel.o"
        _run_compiler(program, [*options, "-c", "-o", str(watched)])
        watcher = (HERE / "races.cpp").read_text(encoding="utf-8")
        options = ["-std=c++20", "-O2", "-shared", "-fPIC", "-DWATCH_RACES", f"-I{HERE}"]
        _run_compiler(watcher, [*options, "-o", str(temporary), str(watched)])


def _run_compiler(program: str, options: list[str]) -> None:
    command = ["g++", *options, "-x", "c++", "-"]
    if sys.platform != "linux" or not shutil.which("g++"):
        raise OSError("the emulator of CUDA needs Linux and g++")
    result = subprocess.run(command, input=program, text=True, capture_output=True)
    if result.returncode:
        raise RuntimeError(result.stderr)


class Emulated:
    """Stands in for `jit.Module`, as a device that may have few multiprocessors and threads.

    Args:
        library: from `build`.
        multiprocessors: of the device. With few of them, even small tensors make threads stride.
        threads: that a multiprocessor holds at once.
        ordered: whether results must not depend on the order in which threads and blocks run.
        launched: collects the names of the kernels.
        backwards: whether threads and blocks run in the opposite order, unless `ordered`, which
            lets them run in both.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        multiprocessors: int,
        threads: int,
        ordered: bool,
        launched: Launched | None = None,
        backwards: bool = False,
    ):
        self.library = library
        self.launched = Launched() if launched is None else launched
        self.multiprocessors = multiprocessors
        self.resident = threads
        self.orders = (False, True) if ordered else (backwards,)

    def threads(self, name: str) -> int:
        return self.resident

    def launch(self, name: str, grid: tuple[int, int], block: int, layout: str, *arguments) -> None:
        self.launched.append(name)
        _check_launch(grid, block)
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        parameters = struct.pack(layout, *values)
        before = [_memory(t).clone() for t in tensors]
        results = []
        for backwards in self.orders:
            for tensor, start in zip(tensors, before):
                _memory(tensor).copy_(start)
            message = self.library.emulate(
                name.encode(), *grid, block, backwards, parameters, len(parameters)
            )
            if message:
                raise RuntimeError(f"{name}: {message.decode()}")
            results.append([_memory(t).clone() for t in tensors])
        for shared, memory in enumerate(("global", "shared")):
            self.launched.atomics[memory] += self.library.emulated_atomics(shared)
        if not all(same_bits(first, last) for first, last in zip(results[0], results[-1])):
            raise RuntimeError(
                f"{name}: the result depends on the order in which threads or blocks run"
            )


def _check_launch(grid: tuple[int, int], block: int) -> None:
    # what cuLaunchKernel allows
    assert 1 <= grid[0] < 2**31
    assert 1 <= grid[1] <= 65535
    # what katlib's kernels take for granted
    assert 32 <= block <= jit.THREADS
    assert block % 32 == 0


def _memory(t: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor in the order of its memory."""
    return t.as_strided((t.numel(),), (1,))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


@contextlib.contextmanager
def emulation(
    multiprocessors: int = 2,
    threads: int = 512,
    ordered: bool = True,
    races: bool = False,
    backwards: bool = False,
) -> Iterator[Launched]:
    """Inside, katlib.cuda computes on CPU tensors, on a device as described for `Emulated`.

    With `races`, a kernel with a race is an error.

    Gives the kernels that have been launched, by name, and their atomic additions.
    """
    launched = Launched()
    margins = []

    def guarded(shape, dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape)
        whole = torch.full((size + 2 * MARGIN,), torch.nan, dtype=dtype)
        margins.append((whole[:MARGIN], whole[MARGIN + size :]))
        return whole[MARGIN : MARGIN + size].view(shape)

    def empty_like(t: torch.Tensor) -> torch.Tensor:
        # for dense tensors, torch.empty_like keeps the strides
        return guarded(t.shape, t.dtype).as_strided(t.shape, t.stride())

    def new_empty(t: torch.Tensor, *shape: int) -> torch.Tensor:
        return guarded(shape, t.dtype)

    def load(source, definitions, index):
        library = build(source, dict(definitions), races)
        return Emulated(library, multiprocessors, threads, ordered, launched, backwards)

    with (
        mock.patch.object(jit, "load", load),
        mock.patch.object(torch, "empty_like", empty_like),
        mock.patch.object(torch.Tensor, "new_empty", new_empty),
    ):
        yield launched
    if not all(margin.isnan().all() for pair in margins for margin in pair):
        raise RuntimeError("a kernel wrote outside its result")
