"""The CUDA backend of `katlib.rational`: rational.cu, compiled at first use (`katlib.cuda.jit`), and what it is launched with.

    available() -> bool                          is there a device, and can kernels be compiled for it
    forward(x, a, b) -> y                        x, y (rows, G, span), a (Ga, m + 1), b (Gb, n); Ga and Gb divide G
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
WIDE = (
    2**29
)  # packs from which offsets have 64 bits: an offset may run past the end by about as much again before it is compared
TYPES = {
    torch.float16: (("TYPE", "__half"), ("HEADER", "<cuda_fp16.h>")),
    torch.float64: (("TYPE", "double"),),
    torch.bfloat16: (("TYPE", "__nv_bfloat16"), ("HEADER", "<cuda_bf16.h>")),
    torch.float32: (("TYPE", "float"),),
}


class Plan(NamedTuple):
    """How rational.cu is launched."""

    tiles: int  # the grid is tiles x parts blocks
    parts: int  # blocks that share the elements of one tile's groups
    block: int  # threads of a block: `lanes` for each row of each group of its tile, as many rows as there is room for
    group_tile: int  # groups in a tile
    lanes: int  # threads that are neighbours in a row of a group


def vector_width(span: int, itemsize: int, *addresses: int) -> int:
    """Elements in one load: 16 bytes of them if the span is a multiple of that and the addresses are too, else 8 bytes, ..., else one."""
    width = 16 // itemsize
    while width > 1 and any(size % (width * itemsize) for size in (span * itemsize, *addresses)):
        width //= 2
    return width


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@functools.lru_cache(maxsize=1024)
def plan(rows: int, groups: int, packs: int, multiprocessors: int, threads: int) -> Plan:
    """The launch for (rows, groups, packs) on so many multiprocessors, each of which holds `threads` threads at once.

    The grid is about as large as the device, and its blocks stride over the data: coefficients are loaded once, partial sums are few.
    """
    if packs > jit.THREADS // 2:  # long rows: a block stays in one group and walks along its rows
        group_tile, lanes, slots, block = 1, jit.THREADS, 1, jit.THREADS
    else:  # short rows: whole groups side by side, and rows one below the other
        group_tile, lanes = _ceil(groups, _ceil(groups, jit.THREADS // packs)), packs
        columns = group_tile * lanes
        most = jit.THREADS // columns
        blocks = {
            slots: _ceil(slots * columns, 32) * 32 for slots in range(most, most // 2, -1)
        }  # a block is a number of whole warps
        slots = max(
            blocks, key=lambda slots: slots * columns / blocks[slots]
        )  # with few threads idle
        block = blocks[slots]
    tiles = _ceil(groups, group_tile)
    resident = multiprocessors * max(1, threads // block)
    return Plan(
        tiles,
        max(1, min(resident // tiles, _ceil(rows * packs, slots * lanes), 65535)),
        block,
        group_tile,
        lanes,
    )


def definitions(
    x: Tensor, a: Tensor, b: Tensor, width: int, wide: bool
) -> tuple[tuple[str, object], ...]:
    """The macros that make rational.cu the kernel for these tensors."""
    return (
        *TYPES[x.dtype],
        ("M", a.shape[1] - 1),
        ("N", b.shape[1]),
        ("WIDTH", width),
        ("INDEX", "long long" if wide else "int"),
    )


def _prepare(name: str, x: Tensor, a: Tensor, b: Tensor, *like_x: Tensor):
    """Checks the tensors; then the module compiled for them, the plan for kernel `name`, and the last arguments of it with their layout."""
    given = (x, a, b, *like_x)
    rows, groups, span = x.shape if x.ndim == 3 else (0, -1, 0)
    if not (
        x.ndim == 3
        and x.dtype in TYPES
        and a.dtype == b.dtype == torch.promote_types(x.dtype, torch.float32)
        and a.ndim == b.ndim == 2
        and all(len(c) and groups % len(c) == 0 for c in (a, b))
        and 1 <= a.shape[1] <= MAX_DEGREE + 1
        and b.shape[1] <= MAX_DEGREE
        and all(t.dtype == x.dtype and t.shape == x.shape for t in like_x)
        and all(t.device == x.device and t.is_contiguous() for t in given)
    ):
        # on the device it would be a wild pointer
        raise ValueError(
            f"x and g must be (rows, G, span), a (Ga, m + 1) and b (Gb, n), Ga and Gb divisors of G, m, n <= {MAX_DEGREE}, a and b float32, or float64 if x is, all "
            "contiguous and on one device; given: "
            + ", ".join(f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in given)
        )
    if not x.numel():
        return None, None, "", ()
    width = vector_width(span, x.itemsize, *(t.data_ptr() for t in (x, *like_x)))
    packs = span // width
    wide = rows * groups * packs >= WIDE
    module = jit.load(SOURCE, definitions(x, a, b, width, wide), x.device.index or 0)
    p = plan(rows, groups, packs, module.multiprocessors, module.threads(name))
    return (
        module,
        p,
        "qqqiiii" if wide else "iiiiiii",
        (rows, groups, packs, groups // len(a), groups // len(b), p.group_tile, p.lanes),
    )


def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x), see the top of this module. x (rows, G, span) -> (rows, G, span)."""
    module, p, layout, sizes = _prepare("rational_forward", x, a, b)
    y = torch.empty_like(x)
    if x.numel():
        module.launch(
            "rational_forward", (p.tiles, p.parts), p.block, "PPPP" + layout, x, a, b, y, *sizes
        )
    return y


def backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients dx (rows, G, span), da (Ga, m + 1), db (Gb, n) for the gradient g of F(x)."""
    module, p, layout, sizes = _prepare("rational_backward", x, a, b, g)
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(a), torch.zeros_like(b)
    dx, da, db = torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)
    groups, coefficients = x.shape[1], a.shape[1] + b.shape[1]
    partial = a.new_empty(groups, coefficients, p.parts)  # (G, m + 1 + n, parts)
    module.launch(
        "rational_backward",
        (p.tiles, p.parts),
        p.block,
        "PPPPPP" + layout,
        g,
        x,
        a,
        b,
        dx,
        partial,
        *sizes,
    )
    largest = p.parts * groups // min(len(a), len(b))  # partial sums of one coefficient
    module.launch(
        "rational_finish",
        (da.numel() + db.numel(), 1),
        min(jit.THREADS, _ceil(largest, 32) * 32),
        "PPPPiiii",
        partial,
        b,
        da,
        db,
        groups // len(a),
        groups // len(b),
        da.numel(),
        p.parts,
    )
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
    except (
        OSError,
        RuntimeError,
        AttributeError,
    ) as error:  # not found; does not compile or load; another version's library
        warnings.warn(
            f"katlib's CUDA kernel cannot be used, so the plain PyTorch implementation is: {error}",
            stacklevel=2,
        )
        return False
