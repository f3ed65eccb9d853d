"""The CPU backend of `katlib.rational`: compiles `rational.cpp` at first use, and calls it.

    available(dtype, m, n) -> bool              does the compiled kernel serve this case
    forward(x, a, b, shape) -> y
    backward(g, x, a, b, shape, input_gradient, coefficient_gradients) -> dx, da, db

The compiler is $CXX, g++ or clang++. Each pair of degrees becomes one library, which is kept in
$KATLIB_CACHE or else in the user's cache folder, under a hash of everything that it depends on and
the hash of its own bytes. Where nothing can be kept it is compiled for this process alone, and
without a compiler the reference in PyTorch runs; a warning says so once.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from katlib.files import cache_folder, lock, warn_not_kept, write_whole

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


def _compiler() -> list[str]:
    """The command of the first compiler that is installed. $CXX may have arguments."""
    chosen = os.environ.get("CXX", "")
    try:
        with_arguments = shlex.split(chosen)
    except ValueError as error:
        raise OSError(f"$CXX is not a command: {chosen!r} ({error})") from None
    # The whole of $CXX comes first, because a path may have spaces.
    for command in ([chosen], with_arguments, ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise OSError("there is no C++ compiler (g++, clang++ or $CXX)")


def _processor() -> str:
    """What -march=native depends on. Machines with other processors may share the cache."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    wanted = ("model name", "flags", "Features")
    features = {line for line in text.splitlines() if line.startswith(wanted)}
    return platform.machine() + platform.processor() + "".join(sorted(features))


def _run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")


def _library_name(compiler: list[str], m: int, n: int) -> str:
    """The name of the library for degrees m and n, made of what it depends on."""
    version = _run(*compiler, "--version").stdout
    depends_on = (SOURCE.read_text(encoding="utf-8"), OPTIONS, compiler, version, _processor())
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    return f"rational-{key}-{m}-{n}"


def _compile(compiler: list[str], m: int, n: int, output: Path) -> None:
    """Compiles the kernel for degrees m and n into the file `output`."""
    degrees = (f"-DM={m}", f"-DN={n}")
    stderr = ""
    # Not every compiler knows every processor, so the second attempt does without its name.
    for target in (("-march=native",), ()):
        result = _run(*compiler, *target, *OPTIONS, *degrees, str(SOURCE), "-o", str(output))
        if result.returncode == 0:
            return
        stderr = result.stderr
    errors = [line for line in stderr.splitlines() if "error" in line] or ["no message"]
    raise OSError(f"{shlex.join(compiler)} could not compile {SOURCE.name}: {errors[0]}")


# ---- Keeping


def _kept_name(name: str, library: Path) -> str:
    """The library's name in the cache, which ends with the SHA-256 of its bytes."""
    return f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so"


def _load_kept(folder: Path, name: str) -> ctypes.CDLL | None:
    """The library from the cache, if one is there that is whole and loads on this system.

    Its bytes are checked first, because a library that was cut off would kill Python when loaded.
    """
    for path in sorted(folder.glob(f"{name}-*.so")):
        # an OSError: it cannot be read, or it was made for another system
        with suppress(OSError):
            if path.name == _kept_name(name, path):
                return ctypes.CDLL(str(path))
    return None


def _keep(compiled: Path, folder: Path, name: str) -> ctypes.CDLL:
    """Copies a library into the cache, and loads it from there."""
    path = folder / _kept_name(name, compiled)
    with write_whole(path) as temporary:
        shutil.copyfile(compiled, temporary)
    return ctypes.CDLL(str(path))


def _warn_not_kept(folder: Path | None, error: Exception) -> None:
    advice = (
        "every process compiles them anew, which takes seconds; "
        "set KATLIB_CACHE to a folder in which you can write and load libraries"
    )
    warn_not_kept("its compiled kernels", folder, error, advice)


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
    """Loads the library for degrees m and n, which is compiled if it is not in the cache."""
    compiler = _compiler()
    name = _library_name(compiler, m, n)
    folder: Path | None = None
    with ExitStack() as stack:
        try:
            folder = cache_folder(os.environ.get("KATLIB_CACHE"))
            if library := _load_kept(folder, name):
                return library
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(folder / name))
            # While we waited for the lock, another process may have compiled it.
            if library := _load_kept(folder, name):
                return library
        except (OSError, RuntimeError) as error:
            # RuntimeError: a file system without locks, a user without a home.
            _warn_not_kept(folder, error)
            folder = None
        return _make_library(compiler, m, n, folder, name)


def _make_library(
    compiler: list[str], m: int, n: int, folder: Path | None, name: str
) -> ctypes.CDLL:
    """Compiles the library and loads it, from the cache in `folder` if it can be kept there."""
    # A library stays loaded when its file is removed, except on Windows, where it then stays too.
    with tempfile.TemporaryDirectory(prefix="katlib-", ignore_cleanup_errors=True) as temporary:
        compiled = Path(temporary) / f"{name}.so"
        _compile(compiler, m, n, compiled)
        if folder is not None:
            try:
                return _keep(compiled, folder, name)
            except OSError as error:
                # If it loads from here, the fault is the cache's.
                library = ctypes.CDLL(str(compiled))
                _warn_not_kept(folder, error)
                return library
        return ctypes.CDLL(str(compiled))


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
        except OSError as error:
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
    lines = [line for line in os.fsdecode(maps.read_bytes()).splitlines() if "/" in line]
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
