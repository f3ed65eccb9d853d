"""Compiles `rational.cpp` at first use and calls it: the CPU backend of `katlib.rational`.

The compiler is $CXX, g++ or clang++. What it makes is kept in $KATLIB_CACHE or the user's cache folder, under a hash of everything that it depends
on, one file for each pair of degrees. Without a compiler the reference in PyTorch runs, and a warning says so once.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("rational.cpp")
OPTIONS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-pthread",
    "-Wno-psabi",
)
MAX_DEGREE = 8
NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise OSError("there is no C++ compiler (g++, clang++ or $CXX)")


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return (
        platform.machine()
        + platform.processor()
        + "".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        )
    )


def _compile(m: int, n: int) -> Path:
    """The path of the compiled library. Made under another name and then renamed, so that processes that start at once don't disturb each other."""
    compiler = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256(
        repr((SOURCE.read_text(), OPTIONS, version, _processor())).encode()
    ).hexdigest()[:16]
    cache = (
        os.environ.get("KATLIB_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "katlib"
    )
    path = Path(cache) / f"rational-{key}-{m}-{n}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        for target in (["-march=native"], []):  # not every compiler knows every processor
            command = [
                compiler,
                *target,
                *OPTIONS,
                f"-DM={m}",
                f"-DN={n}",
                str(SOURCE),
                "-o",
                str(temporary),
            ]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                os.replace(temporary, path)
                return path
        errors = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
        raise OSError(f"{compiler} could not compile {SOURCE.name}: {errors[0]}")
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _parallel() -> ctypes.c_void_p:
    """GOMP_parallel of the OpenMP runtime that torch has loaded, or null: then the kernel starts threads of its own.

    A second runtime in one process would bring its own threads, and they and torch's would wait in each other's way.
    """
    maps = Path("/proc/self/maps")
    loaded = (
        {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if line.count("/")}
        if maps.exists()
        else set()
    )
    for path in sorted(loaded, key=lambda path: "torch" not in path):
        if any(name in Path(path).name for name in ("libgomp", "libiomp", "libomp")):
            try:
                return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p)
            except (OSError, AttributeError):
                continue
    return ctypes.c_void_p()


@functools.cache
def _library(m: int, n: int) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_compile(m, n)))
    except OSError as error:
        _warn(str(error))
        return None


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"katlib runs the rational function on the CPU without its compiled kernel, some ten times slower: {reason}",
        stacklevel=2,
    )


@functools.cache
def _function(kind: str, dtype: torch.dtype, m: int, n: int):
    """The compiled function, or None where the reference has to do: large degrees, no compiler, a compiler without float16."""
    if m > MAX_DEGREE or n > MAX_DEGREE:
        return None
    function = getattr(_library(m, n), f"{kind}_{NAMES[dtype]}", None)
    if function is not None:
        function.argtypes = (
            [ctypes.c_void_p] * (4 if kind == "forward" else 7)
            + [ctypes.c_int64] * 5
            + [ctypes.c_void_p, ctypes.c_int]
        )
        function.restype = None
    return function


def available(dtype: torch.dtype, m: int, n: int) -> bool:
    """Whether the compiled kernel serves this dtype and these degrees; compiles it at the first call."""
    return _function("forward", dtype, m, n) is not None


def forward(x: Tensor, a: Tensor, b: Tensor, shape=None) -> Tensor:
    """F(x) for contiguous x, seen as `shape` (rows, G, span), by default its own; contiguous a (Ga, m + 1) and b (Gb, n) for divisors
    Ga and Gb of G, whose rows are shared by neighbouring groups; a and b float32, or float64 if x is."""
    y = torch.empty_like(x)
    _function("forward", x.dtype, a.shape[1] - 1, b.shape[1])(
        x.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        y.data_ptr(),
        *(shape or x.shape),
        a.shape[0],
        b.shape[0],
        _parallel(),
        torch.get_num_threads(),
    )
    return y


def backward(
    g: Tensor, x: Tensor, a: Tensor, b: Tensor, shape=None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, da and db for the gradient g of F(x), all contiguous; shapes and dtypes as in `forward`."""
    dx, da, db = torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)
    _function("backward", x.dtype, a.shape[1] - 1, b.shape[1])(
        g.data_ptr(),
        x.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        dx.data_ptr(),
        da.data_ptr(),
        db.data_ptr(),
        *(shape or x.shape),
        a.shape[0],
        b.shape[0],
        _parallel(),
        torch.get_num_threads(),
    )
    return dx, da, db
