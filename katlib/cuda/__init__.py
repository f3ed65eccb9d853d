"""The CUDA backend of `katlib.rational`: chooses and launches the kernels of rational.cu.

`forward` and `backward` read x in the order of its memory, as (rows, G, span). So (..., C), NCHW
and channels_last tensors are all served without a copy. `katlib.cuda.jit` compiles the kernels at
first use, one variant for each combination of types, degrees and widths (see `definitions`).

Arithmetic, a, b, da and db are in float64 if x is, else in float32. Everything is queued on the
current stream, and nothing waits for the device or reads from it, so both functions may be captured
in a CUDA graph after a first call, which compiles. Two runs give the same bits: every sum has a
fixed order, which depends on the sizes and the device alone.
"""

import functools
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import jit

SOURCE = Path(__file__).parent / "rational.cu"
MAX_DEGREE = 8
# The number of packs from which offsets have 64 bits. It is a quarter of 2^31 because a thread's
# offset may run past the end by about as much again before it is compared with the end.
WIDE = 2**29
TYPES: dict[torch.dtype, tuple[tuple[str, object], ...]] = {
    torch.float16: (("TYPE", "__half"), ("HEADER", "<cuda_fp16.h>")),
    torch.float64: (("TYPE", "double"),),
    torch.bfloat16: (("TYPE", "__nv_bfloat16"), ("HEADER", "<cuda_bf16.h>")),
    torch.float32: (("TYPE", "float"),),
}
WARP = 32
# bytes that a thread loads at once, where possible
WIDEST_LOAD = 16
# the largest y of a launch's grid
MAX_PARTS = 65535
# in the place of a tensor that a variant of the kernel does not touch
NULL = 0
# After a failure, the next attempt to compile and load the kernels waits this long.
RETRY_SECONDS = 60.0

Shape = tuple[int, int, int]


class Plan(NamedTuple):
    """How a kernel is launched; see `Walk` in rational.cu for what a thread makes of it."""

    # the grid is tiles x parts blocks: a tile is some neighbouring groups, and its blocks share the
    # elements of these groups
    tiles: int
    parts: int
    # threads in a block, a multiple of a warp
    block: int
    # groups in a tile
    group_tile: int
    # neighbouring threads in one row of one group
    lanes: int


def vector_width(span: int, itemsize: int, *addresses: int) -> int:
    """How many elements are loaded at once: the most, up to 16 bytes, for which all is aligned.

    Args:
        span: elements in one row of one group; a multiple of the result.
        itemsize: bytes of an element.
        addresses: where the tensors start; multiples of the load's bytes.

    Example:
        >>> from katlib.cuda import vector_width
        >>> vector_width(24, 2, 4096), vector_width(24, 2, 4100), vector_width(7, 2, 4096)
        (8, 2, 1)
    """
    width = WIDEST_LOAD // itemsize
    while width > 1 and any(size % (width * itemsize) for size in (span * itemsize, *addresses)):
        width //= 2
    return width


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _whole_warps(threads: int) -> int:
    return _ceil(threads, WARP) * WARP


@functools.lru_cache(maxsize=1024)
def plan(rows: int, groups: int, packs: int, multiprocessors: int, threads: int) -> Plan:
    """The launch for x as (rows, groups, packs of elements).

    The grid is about as large as the device, and its blocks stride over the data: so coefficients
    are loaded once, and there are few partial sums.

    Args:
        rows, groups, packs: the sizes of x; a pack is what one load reads.
        multiprocessors: of the device.
        threads: of the kernel that one multiprocessor holds at once.

    Example:
        >>> from katlib.cuda import plan
        >>> plan(rows=25216, groups=8, packs=12, multiprocessors=132, threads=1024)
        Plan(tiles=1, parts=660, block=192, group_tile=8, lanes=12)
    """
    if packs > jit.THREADS // 2:
        return _plan_long_rows(rows, groups, packs, multiprocessors, threads)
    return _plan_short_rows(rows, groups, packs, multiprocessors, threads)


def _plan_long_rows(rows: int, groups: int, packs: int, multiprocessors: int, threads: int) -> Plan:
    """A block stays in one group and walks along its rows."""
    block = jit.THREADS
    resident = multiprocessors * max(1, threads // block)
    parts = _parts(resident, groups, _ceil(rows * packs, block))
    return Plan(tiles=groups, parts=parts, block=block, group_tile=1, lanes=block)


def _plan_short_rows(
    rows: int, groups: int, packs: int, multiprocessors: int, threads: int
) -> Plan:
    """A block covers whole groups side by side, and several rows of them below each other."""
    # as few tiles as possible, and all of about the same size
    group_tile = _ceil(groups, _ceil(groups, jit.THREADS // packs))
    tiles = _ceil(groups, group_tile)
    slots = _rows_in_a_block(group_tile * packs)
    block = _whole_warps(slots * group_tile * packs)
    resident = multiprocessors * max(1, threads // block)
    parts = _parts(resident, tiles, _ceil(rows * packs, slots * packs))
    return Plan(tiles, parts, block, group_tile, lanes=packs)


def _rows_in_a_block(columns: int) -> int:
    """How many rows of `columns` threads each a block has: the number that wastes fewest threads.

    A block consists of whole warps, so some threads of its last warp may have no work. Blocks of
    less than half the largest size are not considered.
    """
    most = jit.THREADS // columns

    def busy(slots: int) -> float:
        return slots * columns / _whole_warps(slots * columns)

    return max(range(most, most // 2, -1), key=busy)


def _parts(resident: int, tiles: int, useful: int) -> int:
    """Blocks for each tile: enough to fill the device, but none without work."""
    return max(1, min(resident // tiles, useful, MAX_PARTS))


def definitions(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    width: int,
    wide: bool,
    input_gradient: bool = True,
    coefficient_gradients: bool = True,
) -> tuple[tuple[str, object], ...]:
    """The macros that make rational.cu the kernels for these tensors.

    Args:
        x, a, b: their types and degrees count, their sizes do not.
        width: elements in a load, see `vector_width`.
        wide: whether offsets have 64 bits.
        input_gradient, coefficient_gradients: what the backward kernel computes.

    Example:
        >>> import torch
        >>> from katlib.cuda import definitions
        >>> x, a, b = torch.empty(0, 1, 4), torch.empty(1, 6), torch.empty(1, 4)
        >>> definitions(x, a, b, width=4, wide=False)
        (('TYPE', 'float'), ('M', 5), ('N', 4), ('WIDTH', 4), ('INDEX', 'int'))
    """
    macros = (
        *TYPES[x.dtype],
        ("M", a.shape[1] - 1),
        ("N", b.shape[1]),
        ("WIDTH", width),
        ("INDEX", "long long" if wide else "int"),
    )
    # both are true in the source unless it is told otherwise
    if not input_gradient:
        macros += (("INPUT_GRADIENT", "false"),)
    if not coefficient_gradients:
        macros += (("COEFFICIENT_GRADIENTS", "false"),)
    return macros


def _is_dense(t: Tensor) -> bool:
    """Whether t is a contiguous tensor, or a permutation of the dimensions of one."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _same_layout(s: Tensor, t: Tensor) -> bool:
    """Whether tensors of one shape have their elements in the same order in memory."""
    if s.stride() == t.stride() or not s.numel():
        return True
    # the stride of a dimension of size 1 says nothing
    return all(
        size == 1 or one == other for size, one, other in zip(s.shape, s.stride(), t.stride())
    )


def _input_problem(x: Tensor, shape: Shape) -> str:
    rows, groups, span = shape
    if x.dtype not in TYPES:
        return "x must be float16, bfloat16, float32 or float64"
    if x.numel() != rows * groups * span:
        return f"x must have rows * G * span = {rows} * {groups} * {span} elements"
    if not _is_dense(x):
        return "x must be contiguous, or a permutation of a contiguous tensor"
    return ""


def _gradient_problem(g: Tensor, x: Tensor) -> str:
    if g.dtype != x.dtype or g.shape != x.shape or g.device != x.device:
        return "g must have the type, the shape and the device of x"
    if not _same_layout(g, x):
        return "g must have the strides of x"
    return ""


def _coefficient_problem(
    name: str, c: Tensor, x: Tensor, groups: int, fewest: int, most: int
) -> str:
    if c.dtype != (torch.float64 if x.dtype == torch.float64 else torch.float32):
        return f"{name} must be float32, or float64 if x is"
    if c.ndim != 2 or not fewest <= c.shape[1] <= most:
        return f"{name} must have two dimensions and {fewest} to {most} columns"
    if not len(c) or groups % len(c):
        return f"the rows of {name} must divide the {groups} groups"
    if c.device != x.device or not c.is_contiguous():
        return f"{name} must be contiguous and on the device of x"
    return ""


def _check(x: Tensor, a: Tensor, b: Tensor, shape: Shape, g: Tensor | None = None) -> None:
    """Raises a ValueError for tensors whose memory the kernels would read or write wrongly."""
    groups = shape[1]
    problem = (
        _input_problem(x, shape)
        or (_gradient_problem(g, x) if g is not None else "")
        or _coefficient_problem("a", a, x, groups, 1, MAX_DEGREE + 1)
        or _coefficient_problem("b", b, x, groups, 0, MAX_DEGREE)
    )
    if problem:
        tensors = (x, a, b) if g is None else (x, a, b, g)
        given = ", ".join(
            f"{t.dtype} {tuple(t.shape)} of strides {t.stride()} on {t.device}" for t in tensors
        )
        raise ValueError(f"{problem}; given: {given}")


class _Launch(NamedTuple):
    """A kernel and all of its launch but the pointers, with which its arguments begin."""

    module: jit.Module
    name: str
    grid: tuple[int, int]
    block: int
    # the types of all arguments, in the letters of `struct`
    layout: str
    sizes: tuple[int, ...]

    def run(self, *pointers: Tensor | int) -> None:
        self.module.launch(self.name, self.grid, self.block, self.layout, *pointers, *self.sizes)


class _Launches(NamedTuple):
    """What a call of `forward` or `backward` launches."""

    first: _Launch
    # after a first launch that leaves partial sums, of this shape, their addition
    finish: _Launch
    partial: tuple[int, int, int]


# What was prepared before, by all that it depends on but the elements themselves.
_prepared: dict[tuple, _Launches] = {}
MOST_PREPARED = 1024


def _kind(t: Tensor) -> tuple:
    """What decides how the elements of a tensor are read."""
    return t.dtype, t.shape, t.stride(), t.device


def _launches(
    inputs: tuple[Tensor, ...],
    a: Tensor,
    b: Tensor,
    shape: Shape,
    asked: tuple[bool, bool] | None = None,
) -> _Launches:
    """The launches for these tensors. Tensors of a kind that came before need no second check.

    Args:
        inputs: x, or x and g.
        a, b, shape: as for `backward`.
        asked: for backward, its input_gradient and coefficient_gradients.

    Raises:
        ValueError: tensors that do not fit.
    """
    misaligned = 0
    for t in inputs:
        misaligned |= t.data_ptr() % WIDEST_LOAD
    # what loads the kernels belongs to it, because tests and benchmarks exchange that
    key = jit.load, SOURCE, misaligned, shape, asked, _kind(a), _kind(b), *map(_kind, inputs)
    launches = _prepared.get(key)
    if launches is None:
        x, *g = inputs
        _check(x, a, b, shape, *g)
        if len(_prepared) >= MOST_PREPARED:
            _prepared.clear()
        launches = _prepared[key] = _prepare(x, a, b, shape, misaligned, asked)
    return launches


def _prepare(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    shape: Shape,
    address: int,
    asked: tuple[bool, bool] | None,
) -> _Launches:
    """Chooses and loads the variant of the kernels, and plans their launches.

    Args:
        x, a, b, shape, asked: as for `_launches`.
        address: where the inputs start; of several, one that is no more aligned than any of them.
    """
    rows, groups, span = shape
    name, pointers = ("rational_forward", 4) if asked is None else ("rational_backward", 6)
    width = vector_width(span, x.itemsize, address)
    packs = span // width
    wide = rows * groups * packs >= WIDE
    macros = definitions(x, a, b, width, wide, *(asked or (True, True)))
    module = jit.load(SOURCE, macros, x.device.index or 0)
    launch_plan = plan(rows, groups, packs, module.multiprocessors, module.threads(name))
    shares = groups // a.shape[0], groups // b.shape[0]
    first = _Launch(
        module,
        name,
        (launch_plan.tiles, launch_plan.parts),
        launch_plan.block,
        "P" * pointers + ("qqq" if wide else "iii") + "iiii",
        (rows, groups, packs, *shares, launch_plan.group_tile, launch_plan.lanes),
    )
    partial = groups, a.shape[1] + b.shape[1], launch_plan.parts
    return _Launches(first, _prepare_finish(module, a, b, shares, launch_plan.parts), partial)


def _prepare_finish(
    module: jit.Module, a: Tensor, b: Tensor, shares: tuple[int, int], parts: int
) -> _Launch:
    """Plans the addition of the blocks' partial sums (G, m + 1 + n, parts): a block each for da's
    and db's elements."""
    return _Launch(
        module,
        "rational_finish",
        (a.numel() + b.numel(), 1),
        # the partial sums of one coefficient decide how many threads have work
        min(jit.THREADS, _whole_warps(parts * max(shares))),
        "PPPPiiii",
        (*shares, a.numel(), parts),
    )


def forward(x: Tensor, a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    """F(x) = P(x) / Q(x), with the coefficients of each element's group.

    Args:
        x: any rank; float16, bfloat16, float32 or float64; contiguous or a permutation of that.
        a: numerators (Ga, m + 1), contiguous, float32, or float64 if x is. Ga divides G.
        b: denominators (Gb, n), likewise.
        shape: (rows, G, span), as which the memory of x is read, in row-major order.

    Returns:
        y, like x in shape, type and strides.

    Raises:
        ValueError: tensors that do not fit.
    """
    if not x.numel():
        _check(x, a, b, shape)
        return torch.empty_like(x)
    launches = _launches((x,), a, b, shape)
    y = torch.empty_like(x)
    launches.first.run(x, a, b, y)
    return y


def backward(
    g: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    shape: Shape,
    input_gradient: bool = True,
    coefficient_gradients: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x and of the coefficients. What is not asked for is not computed either.

    Args:
        g: the gradient of F(x), like x in shape, type and strides.
        x, a, b, shape: as for `forward`.
        input_gradient: whether dx is computed.
        coefficient_gradients: whether da and db are.

    Returns:
        dx, like x in shape, type and strides; da (Ga, m + 1) and db (Gb, n), like a and b. None in
        the place of what was not asked for.

    Raises:
        ValueError: tensors that do not fit.
    """
    if not x.numel() or not (input_gradient or coefficient_gradients):
        _check(x, a, b, shape, g)
        return (
            torch.empty_like(x) if input_gradient else None,
            torch.zeros_like(a) if coefficient_gradients else None,
            torch.zeros_like(b) if coefficient_gradients else None,
        )

    launches = _launches((x, g), a, b, shape, (input_gradient, coefficient_gradients))
    dx = torch.empty_like(x) if input_gradient else None
    dx_pointer = NULL if dx is None else dx
    if not coefficient_gradients:
        launches.first.run(g, x, a, b, dx_pointer, NULL)
        return dx, None, None
    partial, da, db = a.new_empty(*launches.partial), torch.empty_like(a), torch.empty_like(b)
    launches.first.run(g, x, a, b, dx_pointer, partial)
    launches.finish.run(partial, b, da, db)
    return dx, da, db


# When kernels were last tried in vain, or None, and whether they were ever loaded.
_failed_at: float | None = None
_loaded = False


@functools.cache
def _warn(reason: str) -> None:
    """Warns that the kernel is missing, once for each reason."""
    warnings.warn(
        f"katlib's CUDA kernel cannot be used, so the plain PyTorch implementation is: {reason}",
        stacklevel=3,
    )


def available() -> bool:
    """Whether there is a CUDA device for which kernels can be compiled and loaded.

    If there is a device but that fails, a warning says why, once. A failure may pass (a device
    without free memory), so a minute later it is tried again.
    """
    global _failed_at, _loaded
    if _loaded:
        return True
    if _failed_at is not None and time.monotonic() < _failed_at + RETRY_SECONDS:
        return False
    _loaded = _can_load()
    _failed_at = None if _loaded else time.monotonic()
    return _loaded


def _can_load() -> bool:
    """Tries to compile and load a kernel for the current device; warns if that fails."""
    if not torch.version.cuda or not torch.cuda.is_available():
        return False
    x, a, b = torch.empty(0, 1, 4), torch.empty(1, 6), torch.empty(1, 4)
    macros = definitions(x, a, b, width=4, wide=False)
    try:
        jit.load(SOURCE, macros, torch.cuda.current_device())
    # a library that was not found, a source that does not compile or load, and a library of a
    # version that lacks a function
    except (OSError, RuntimeError, AttributeError) as error:
        _warn(str(error))
        return False
    return True
