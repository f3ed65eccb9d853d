"""The CUDA backend of `katlib.rational`: rational.cu, compiled at first use (`katlib.cuda.jit`), and what it is launched with.

    available() -> bool                          is there a device, and can kernels be compiled for it
    forward(x, a, b) -> y                        x, y (rows, G, span), a (G, m + 1), b (G, n)
    backward(g, x, a, b) -> dx, da, db           g, dx like x, da like a, db like b

x, g, y and dx are contiguous; a, b, da and db have the type that is computed in: float64 for float64, else float32. Everything is
queued on the current stream, nothing waits for the device or reads from it, so both may be captured in a CUDA graph (after a first
call, which compiles). Two runs give the same bits: every sum has a fixed order, which depends on the sizes and the device alone.
"""

import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import jit

SOURCE = Path(__file__).parent / "rational.cu"
MAX_DEGREE = 8
WIDE = 2 ** 29      # packs from which offsets have 64 bits: an offset may run past the end by about as much again before it is compared
TYPES = {torch.float16: (("TYPE", "__half"), ("HEADER", "<cuda_fp16.h>")), torch.float64: (("TYPE", "double"),),
         torch.bfloat16: (("TYPE", "__nv_bfloat16"), ("HEADER", "<cuda_bf16.h>")), torch.float32: (("TYPE", "float"),)}


class Plan(NamedTuple):
    """How rational.cu is launched. A pack is `width` neighbouring elements; the grid is `tiles` x `parts` blocks of `block` threads.

    A tile is `group_tile` groups; its `parts` blocks share those groups' elements among them. Of a block's threads `lanes` are
    neighbours in a row of one group, and there are as many such rows, of each group of the tile, as the block has room for.
    """
    packs: int              # in a row of a group
    tiles: int
    parts: int
    block: int
    group_tile: int
    lanes: int


def vector_width(span: int, itemsize: int, *addresses: int) -> int:
    """Elements in one load: 16 bytes of them if the span is a multiple of that and the addresses are too, else 8 bytes, ..., else one."""
    width = 16 // itemsize
    while width > 1 and any(size % (width * itemsize) for size in (span * itemsize, *addresses)):
        width //= 2
    return width


@functools.lru_cache(maxsize=1024)
def plan(rows: int, groups: int, packs: int, multiprocessors: int, threads: int) -> Plan:
    """The launch for (rows, groups, packs) on so many multiprocessors, each of which holds `threads` threads at once.

    The grid is about as large as the device, and its blocks stride over the data: coefficients are loaded once, partial sums are few.
    """
    if packs > jit.THREADS // 2:                                        # long rows: a block stays in one group and walks along its rows
        group_tile, lanes, block = 1, jit.THREADS, jit.THREADS
        slots = 1
    else:                                                               # short rows: whole groups side by side, and rows one below the other
        tiles = -(-groups // min(groups, jit.THREADS // packs))
        group_tile, lanes = -(-groups // tiles), packs
        columns = group_tile * lanes
        most = jit.THREADS // columns
        padded = {slots: -(-slots * columns // 32) * 32 for slots in range(most, most // 2, -1)}     # a block is a number of whole warps
        slots = max(padded, key=lambda slots: slots * columns / padded[slots])                       # with few lanes idle
        block = padded[slots]
    tiles = -(-groups // group_tile)
    resident = multiprocessors * max(1, threads // block)
    needed = -(-rows * packs // (slots * lanes))
    return Plan(packs, tiles, max(1, min(resident // tiles, needed, 65535)), block, group_tile, lanes)


def definitions(x: Tensor, a: Tensor, b: Tensor, width: int, wide: bool) -> tuple[tuple[str, object], ...]:
    """The macros that make rational.cu the kernel for these tensors."""
    return (*TYPES[x.dtype], ("M", a.shape[1] - 1), ("N", b.shape[1]), ("WIDTH", width), ("INDEX", "long long" if wide else "int"))


def _prepare(x: Tensor, a: Tensor, b: Tensor, *others: Tensor):
    """The module compiled for these tensors, and the tensors' sizes with their layout among a kernel's arguments."""
    rows, groups, span = x.shape
    width = vector_width(span, x.itemsize, x.data_ptr(), *(t.data_ptr() for t in others))
    sizes = rows, groups, span // width
    wide = rows * groups * (span // width) >= WIDE
    return jit.load(SOURCE, definitions(x, a, b, width, wide), x.device.index or 0), sizes, "qqqii" if wide else "iiiii"


def _launch(module: jit.Module, name: str, p: Plan, layout: str, sizes: tuple[int, int, int], *tensors: Tensor) -> None:
    module.launch(name, (p.tiles, p.parts), p.block, "P" * len(tensors) + layout, *tensors, *sizes, p.group_tile, p.lanes)


def _check(x: Tensor, a: Tensor, b: Tensor, *like_x: Tensor) -> None:
    """A wrong argument would be a wild pointer, so it costs the microsecond. The operator's own messages come before these."""
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.dtype not in TYPES or a.dtype != real or b.dtype != real or any(t.dtype != x.dtype or t.shape != x.shape for t in like_x):
        raise TypeError(f"x, a and b are {x.dtype}, {a.dtype} and {b.dtype}; a and b must be float32, or float64 with a float64 x")
    if x.ndim != 3 or a.ndim != 2 or b.ndim != 2 or not x.shape[1] == a.shape[0] == b.shape[0]:
        raise ValueError(f"x, a and b have shapes {tuple(x.shape)}, {tuple(a.shape)} and {tuple(b.shape)}; they must be (rows, G, span), (G, m + 1), (G, n)")
    if not 1 <= a.shape[1] <= MAX_DEGREE + 1 or b.shape[1] > MAX_DEGREE:
        raise ValueError(f"degrees are ({a.shape[1] - 1}, {b.shape[1]}); the kernel allows 0 to {MAX_DEGREE}")
    if not all(t.is_contiguous() and t.device == x.device for t in (x, a, b, *like_x)):
        raise ValueError("all tensors must be contiguous and on one device")


def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x), see the top of this module. x (rows, G, span) -> (rows, G, span)."""
    _check(x, a, b)
    y = torch.empty_like(x)
    if x.numel():
        module, sizes, layout = _prepare(x, a, b)
        p = plan(*sizes, module.multiprocessors, module.threads("rational_forward"))
        _launch(module, "rational_forward", p, layout, sizes, x, a, b, y)
    return y


def backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients dx (rows, G, span), da (G, m + 1), db (G, n) for the gradient g of F(x)."""
    _check(x, a, b, g)
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(a), torch.zeros_like(b)
    dx, da, db = torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)
    module, sizes, layout = _prepare(x, a, b, g)
    p = plan(*sizes, module.multiprocessors, module.threads("rational_backward"))
    coefficients = a.shape[1] + b.shape[1]
    partial = a.new_empty(sizes[1], coefficients, p.parts)              # (G, m + 1 + n, parts)
    _launch(module, "rational_backward", p, layout, sizes, g, x, a, b, dx, partial)
    module.launch("rational_finish", (sizes[1] * coefficients, 1), 32, "PPPPi", partial, b, da, db, p.parts)
    return dx, da, db


@functools.cache
def available() -> bool:
    """Whether there is a CUDA device that kernels can be compiled for and loaded on. If there is one but that fails, a warning says why."""
    if not torch.version.cuda or not torch.cuda.is_available():
        return False
    try:
        tensors = torch.empty(0, 1, 4), torch.empty(1, 6), torch.empty(1, 4)
        jit.load(SOURCE, definitions(*tensors, width=4, wide=False), torch.cuda.current_device())
        return True
    except (OSError, RuntimeError, AttributeError) as error:            # not found; does not compile or load; another version's library
        warnings.warn(f"katlib's CUDA kernel cannot be used, so the plain PyTorch implementation is: {error}", stacklevel=2)
        return False
