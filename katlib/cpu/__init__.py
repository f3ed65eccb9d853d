"""The CPU backend of `katlib.rational`: compiles `rational.cpp` at first use, and calls it.

    available(dtype, m, n) -> bool              does the compiled kernel serve this case
    forward(x, a, b, shape) -> y
    backward(g, x, a, b, shape, input_gradient, coefficient_gradients) -> dx, da, db

The compiler is $CXX, g++ or clang++. Each pair of degrees becomes one library, which is kept in
$KATLIB_CACHE or else in the user's cache folder, under a hash of everything that it depends on.
Without a compiler the reference in PyTorch runs, and a warning says so once.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from katlib.files import lock, write_whole

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
# After a failure, the next attempt to compile and load a library waits this long.
RETRY_SECONDS = 60.0
# How the functions in the library are called for each dtype of x
NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


# ---- Compiling


def _compiler() -> str:
    """The command of the first compiler that is installed."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise OSError("there is no C++ compiler (g++, clang++ or $CXX)")


def _processor() -> str:
    """What -march=native depends on. Machines with other processors may share the cache."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return platform.machine() + platform.processor() + "".join(sorted(features))


def _cache_folder() -> Path:
    chosen = os.environ.get("KATLIB_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "katlib"


def _library_path(compiler: str, m: int, n: int) -> Path:
    """Where the library for degrees m and n is kept."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, errors="replace"
    ).stdout
    depends_on = (SOURCE.read_text(encoding="utf-8"), OPTIONS, version, _processor())
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    return _cache_folder() / f"rational-{key}-{m}-{n}.so"


def _compile(compiler: str, m: int, n: int, output: Path) -> None:
    """Compiles the kernel for degrees m and n into the file `output`."""
    degrees = (f"-DM={m}", f"-DN={n}")
    stderr = ""
    # Not every compiler knows every processor, so the second attempt does without its name.
    for target in (("-march=native",), ()):
        command = [compiler, *target, *OPTIONS, *degrees, str(SOURCE), "-o", str(output)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode == 0:
            return
        stderr = result.stderr
    errors = [line for line in stderr.splitlines() if "error" in line] or ["no message"]
    raise OSError(f"{compiler} could not compile {SOURCE.name}: {errors[0]}")


def _compiled(m: int, n: int) -> Path:
    """The path of the library for degrees m and n, which is compiled if it is not in the cache."""
    compiler = _compiler()
    path = _library_path(compiler, m, n)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path):
        # While we waited for the lock, another process may have compiled it.
        if not path.exists():
            with write_whole(path) as temporary:
                _compile(compiler, m, n, temporary)
    return path


# ---- Loading


class _Kernel(NamedTuple):
    """The compiled functions for one dtype and one pair of degrees."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    input_gradient: Callable[..., None]
    coefficient_gradients: Callable[..., None]


# What has been loaded, and when a library that failed was last tried. `_loading` guards changes.
_kernels: dict[tuple[torch.dtype, int, int], _Kernel] = {}
_libraries: dict[tuple[int, int], ctypes.CDLL] = {}
_failures: dict[tuple[int, int], float] = {}
_loading = threading.Lock()


@functools.cache
def _warn(reason: str) -> None:
    """Warns that the kernel is missing, once for each reason."""
    warnings.warn(
        "katlib runs the rational function on the CPU without its compiled kernel, "
        f"some ten times slower: {reason}",
        stacklevel=2,
    )


def _load_library(m: int, n: int) -> ctypes.CDLL:
    """Loads the library for degrees m and n."""
    path = _compiled(m, n)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        # The file is damaged, or was made for another system: compile it anew, once.
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled(m, n)))


def _library(m: int, n: int) -> ctypes.CDLL | None:
    """The library for degrees m and n, or None if it could not be made in the last minute.

    A failure may pass: a full disk, a compiler that ran out of memory. We therefore try again, but
    not at every call, because a failing compiler takes its time too.
    """
    degrees = (m, n)
    with _loading:
        if degrees in _libraries:
            return _libraries[degrees]
        if degrees in _failures and time.monotonic() < _failures[degrees] + RETRY_SECONDS:
            return None
        try:
            library = _load_library(m, n)
        except (OSError, RuntimeError) as error:
            # RuntimeError: a file system without locks, a user without a home.
            _failures[degrees] = time.monotonic()
            _warn(str(error))
            return None
        _libraries[degrees] = library
        return library


def _function(library: ctypes.CDLL, name: str, tensors: int) -> Callable[..., None]:
    """A function of the library: pointers to tensors, five sizes, `_parallel()`, threads."""
    function = getattr(library, name)
    function.argtypes = (
        [ctypes.c_void_p] * tensors + [ctypes.c_int64] * 5 + [ctypes.c_void_p, ctypes.c_int]
    )
    function.restype = None
    return function


def _load_kernel(dtype: torch.dtype, m: int, n: int) -> _Kernel | None:
    """The kernel, or None if the reference has to do.

    That is so for large degrees, for other dtypes, without a compiler, and for float16 if the
    compiler does not know it.
    """
    if m > MAX_DEGREE or n > MAX_DEGREE or dtype not in NAMES:
        return None
    library = _library(m, n)
    if library is None:
        return None
    name = NAMES[dtype]
    if not hasattr(library, f"forward_{name}"):
        return None
    kernel = _Kernel(
        forward=_function(library, f"forward_{name}", tensors=4),
        backward=_function(library, f"backward_{name}", tensors=7),
        input_gradient=_function(library, f"input_gradient_{name}", tensors=7),
        coefficient_gradients=_function(library, f"coefficient_gradients_{name}", tensors=7),
    )
    _kernels[dtype, m, n] = kernel
    return kernel


def _loaded_libraries() -> list[str]:
    """The paths of the libraries that this process has loaded, where the system tells them."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    lines = [line for line in maps.read_text().splitlines() if "/" in line]
    return sorted({line.split(maxsplit=5)[5] for line in lines})


@functools.cache
def _parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch has loaded, or None.

    With None the kernel starts threads of its own. We do not load a second OpenMP runtime: it would
    bring a second set of threads, which would compete with torch's for the cores.
    """
    runtimes = [
        path
        for path in _loaded_libraries()
        if any(name in Path(path).name for name in ("libgomp", "libiomp", "libomp"))
    ]
    # The one that torch brings comes first.
    runtimes.sort(key=lambda path: "torch" not in path)
    for path in runtimes:
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


# ---- Calling


def available(dtype: torch.dtype, m: int, n: int) -> bool:
    """Whether the compiled kernel serves this dtype and these degrees. The first call compiles it.

    Args:
        dtype: the dtype of x.
        m: the degree of the numerator.
        n: the degree of the denominator.

    Example:
        >>> available(torch.float32, 99, 99)
        False
    """
    return (dtype, m, n) in _kernels or _load_kernel(dtype, m, n) is not None


def _kernel(dtype: torch.dtype, m: int, n: int) -> _Kernel:
    """The kernel for a case for which `available` is true."""
    kernel = _kernels.get((dtype, m, n)) or _load_kernel(dtype, m, n)
    assert kernel is not None, "there is no kernel for this case: ask `available` first"
    return kernel


def forward(x: Tensor, a: Tensor, b: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """F(x) by the compiled kernel, for a case that is `available`.

    Nothing is checked here, because that would cost as much as a small tensor's call. The operator
    in `katlib.ops` has checked what it passes on.

    Args:
        x: a dense tensor of any rank, whose memory is read as `shape` in row-major order. For a
            channels_last tensor that is the order N, H, W, C.
        a: numerator (Ga, m + 1), contiguous. float64 if x is, else float32.
        b: denominator (Gb, n), likewise. Ga and Gb are divisors of G.
        shape: (rows, G, span).

    Returns:
        F(x) with the dtype and the strides of x.

    Example:
        >>> x, a, b = torch.ones(2, 4), torch.tensor([[0.0, 1.0]]), torch.zeros(2, 1)
        >>> if available(torch.float32, 1, 1):
        ...     assert torch.equal(forward(x, a, b, (2, 2, 2)), x)
    """
    Ga, terms = a.shape
    Gb, n = b.shape
    y = torch.empty_like(x)
    _kernel(x.dtype, terms - 1, n).forward(
        x.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        y.data_ptr(),
        *shape,
        Ga,
        Gb,
        _parallel(),
        torch.get_num_threads(),
    )
    return y


def backward(
    g: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    shape: tuple[int, int, int],
    input_gradient: bool = True,
    coefficient_gradients: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of F by the compiled kernel, for a case that is `available`.

    What is not asked for is neither computed nor stored. Nothing is checked, as in `forward`.

    Args:
        g: the gradient with respect to F(x), with the dtype and the strides of x.
        x, a, b, shape: as in `forward`.
        input_gradient: whether to compute dx.
        coefficient_gradients: whether to compute da and db.

    Returns:
        (dx, da, db), with None for what was not asked for. dx has the strides of x.

    Example:
        >>> x, a, b = torch.ones(2, 4), torch.tensor([[0.0, 1.0]]), torch.zeros(2, 1)
        >>> if available(torch.float32, 1, 1):
        ...     dx, da, db = backward(x, x, a, b, (2, 2, 2))
        ...     assert da.tolist() == [[8.0, 8.0]]
    """
    if not input_gradient and not coefficient_gradients:
        return None, None, None
    Ga, terms = a.shape
    Gb, n = b.shape
    kernel = _kernel(x.dtype, terms - 1, n)
    dx = da = db = None
    # A null pointer stands for what is not asked for.
    to_dx = to_da = to_db = None
    function = kernel.backward
    if input_gradient:
        dx = torch.empty_like(x)
        to_dx = dx.data_ptr()
    else:
        function = kernel.coefficient_gradients
    if coefficient_gradients:
        da = torch.empty_like(a)
        db = torch.empty_like(b)
        to_da = da.data_ptr()
        to_db = db.data_ptr()
    else:
        function = kernel.input_gradient
    function(
        g.data_ptr(),
        x.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        to_dx,
        to_da,
        to_db,
        *shape,
        Ga,
        Gb,
        _parallel(),
        torch.get_num_threads(),
    )
    return dx, da, db
