"""Runs katlib's CUDA sources on the CPU: g++ and emulator.h in the place of NVRTC and the driver.

`Emulated` stands in for `katlib.cuda.jit.load`, so that the tests go through the real host code: the choice of a variant, the launch
plan, the packing of arguments. It watches what a GPU would not tell: results hold NaN until they are written, and have margins in
which nothing may be written; every kernel runs twice, its threads and blocks in opposite orders, with the same bits each time.
"""

import contextlib
import ctypes
import hashlib
import math
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import torch

from katlib.cuda import jit

HERE = Path(__file__).parent
FLAGS = os.environ.get(
    "KATLIB_EMULATOR_FLAGS", "-O1"
).split()  # e.g. -O1 -g -fsanitize=address,undefined
BUILT = (
    Path(tempfile.gettempdir()) / f"katlib-emulator-{os.getuid() if hasattr(os, 'getuid') else 0}"
)
MARGIN = 64  # elements in front of and behind each result


def build(source: Path, definitions: dict[str, object]) -> ctypes.CDLL:
    """The source as a shared library; kept between runs under a hash of all that it is made from."""
    kernels = re.findall(
        r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)", source.read_text()
    )
    program = f'#include "emulator.h"\n#include "{source}"\nEMULATOR_ENTRY({" ".join(f"KERNEL({name})" for name in kernels)})\n'
    options = [
        "-std=c++20",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Werror",
        *FLAGS,
        f"-DTHREADS={jit.THREADS}",
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    parts = [
        *kernels,
        *options,
        *(
            path.read_text()
            for path in [source, *sorted([*HERE.glob("*.h"), *source.parent.glob("*.cuh")])]
        ),
    ]
    target = BUILT / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24] + ".so")
    if not target.exists():
        BUILT.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=BUILT) as folder:
            built = Path(folder) / "kernel.so"
            command = [
                "g++",
                *options,
                f"-I{HERE}",
                f"-I{source.parent}",
                "-o",
                built,
                "-x",
                "c++",
                "-",
            ]
            result = subprocess.run(command, input=program, text=True, capture_output=True)
            if result.returncode:
                raise RuntimeError(result.stderr)
            built.replace(target)
    library = ctypes.CDLL(str(target))
    library.emulate.restype = ctypes.c_char_p
    library.emulate.argtypes = [
        ctypes.c_char_p,
        *[ctypes.c_uint] * 3,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return library


class Emulated:
    """What `jit.Module` is on a device, for a device of few multiprocessors, so that even small tensors make threads stride."""

    def __init__(self, library: ctypes.CDLL, multiprocessors: int, threads: int, ordered: bool):
        self.library, self.multiprocessors, self.resident, self.ordered = (
            library,
            multiprocessors,
            threads,
            ordered,
        )
        self.launches = []

    def threads(self, name: str) -> int:
        return self.resident

    def launch(self, name: str, grid: tuple[int, int], block: int, layout: str, *arguments) -> None:
        # what cuLaunchKernel allows, and what katlib's kernels take for granted
        assert (
            1 <= grid[0] < 2**31
            and 1 <= grid[1] <= 65535
            and 32 <= block <= jit.THREADS
            and block % 32 == 0
        )
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        parameters = struct.pack(
            layout, *[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        )
        before, after = [t.clone() for t in tensors], []
        for backwards in (0, 1) if self.ordered else (0,):
            for tensor, start in zip(tensors, before):
                tensor.copy_(start)
            if message := self.library.emulate(
                name.encode(), *grid, block, backwards, parameters, len(parameters)
            ):
                raise RuntimeError(f"{name}: {message.decode()}")
            after.append([t.clone() for t in tensors])
        if self.ordered and not all(same_bits(first, second) for first, second in zip(*after)):
            raise RuntimeError(
                f"{name}: the result depends on the order in which threads or blocks run"
            )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


@contextlib.contextmanager
def emulation(multiprocessors: int = 2, threads: int = 512, ordered: bool = True):
    """Inside, katlib.cuda computes on CPU tensors. `ordered`: results must not depend on the order in which threads run."""
    margins = []

    def guarded(shape, dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape)
        whole = torch.full((size + 2 * MARGIN,), torch.nan, dtype=dtype)
        margins.append((whole[:MARGIN], whole[MARGIN + size :]))
        return whole[MARGIN : MARGIN + size].view(shape)

    def load(source, definitions, index):
        return Emulated(build(source, dict(definitions)), multiprocessors, threads, ordered)

    with (
        mock.patch.object(jit, "load", load),
        mock.patch.object(torch, "empty_like", lambda t: guarded(t.shape, t.dtype)),
        mock.patch.object(torch.Tensor, "new_empty", lambda t, *shape: guarded(shape, t.dtype)),
    ):
        yield
    if not all(margin.isnan().all() for pair in margins for margin in pair):
        raise RuntimeError("a kernel wrote outside its result")
