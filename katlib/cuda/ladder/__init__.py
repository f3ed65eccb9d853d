"""The ladder: six backward kernels, each a small CUDA file that changes one thing.

They are meant to be read in order, from the obvious way to sum the gradients of the coefficients to
the one that ../rational.cu uses. Every stage computes the same dx, da and db, on the same grid of
blocks, and walks through the elements in the same way (`element.cuh`). The stages are for teaching
and for the benchmark: they take float16, bfloat16 and float32, and compute in float32. In stages 1
to 4 the last bits of the sums change from run to run.
"""

from pathlib import Path

import torch
from torch import Tensor

from .. import MAX_PARTS, TYPES, WARP, WIDE, jit, vector_width

# name of the file -> what it changes
STAGES = {
    "stage1_global_atomics": "ten global atomics an element",
    "stage2_shared_atomics": "ten shared-memory atomics an element, ten global ones a block",
    "stage3_registers": "sums in registers, ten global atomics a thread",
    "stage4_block_reduction": "sums folded by warp and block, ten global atomics a block",
    "stage5_two_stages": "no atomics: partial sums, then a second kernel",
    "stage6_packs": "16 bytes read and written at once",
}
FOLDER = Path(__file__).parent
BLOCK = jit.THREADS


def _check(x: Tensor, a: Tensor, b: Tensor, g: Tensor | None = None) -> None:
    """Raises a ValueError for tensors that the kernels do not take."""
    known = x.dtype in TYPES and x.dtype != torch.float64
    if not known or a.dtype != torch.float32 or b.dtype != torch.float32 or not x.numel():
        raise ValueError(
            "the ladder is for float16, bfloat16 and float32 with float32 coefficients, and for "
            "tensors that are not empty; given: "
            f"{x.dtype} {tuple(x.shape)}, {a.dtype}, {b.dtype}"
        )
    if x.numel() >= WIDE:
        raise ValueError(f"the ladder is for fewer than 2^29 elements; given: {x.numel():,}")
    tensors = (x, a, b) if g is None else (x, a, b, g)
    fitting = all(t.is_contiguous() and t.device == x.device for t in tensors)
    alike = g is None or (g.shape == x.shape and g.dtype == x.dtype)
    if not fitting or not alike:
        raise ValueError(
            "the ladder's tensors must be contiguous, on one device, and x and g alike"
        )


def definitions(x: Tensor, a: Tensor, b: Tensor, width: int = 1) -> dict[str, object]:
    """The macros that make a stage's source the kernels for these tensors.

    Args:
        x, a, b: their types and degrees count.
        width: elements in a pack, for stage 6.

    Example:
        >>> import torch
        >>> from katlib.cuda import ladder
        >>> ladder.definitions(torch.empty(0), torch.empty(8, 6), torch.empty(8, 4))
        {'TYPE': 'float', 'M': 5, 'N': 4, 'WIDTH': 1}
    """
    sizes = {"M": a.shape[1] - 1, "N": b.shape[1], "WIDTH": width}
    return dict(TYPES[x.dtype]) | sizes


def _load(stage: str, x: Tensor, a: Tensor, b: Tensor, width: int = 1) -> jit.Module:
    macros = tuple(definitions(x, a, b, width).items())
    return jit.load(FOLDER / f"{stage}.cu", macros, x.device.index or 0)


def _grid(module: jit.Module, name: str, x: Tensor) -> tuple[int, int]:
    """(G, parts): as many blocks as the device holds at once, the same number for each group."""
    rows, groups, span = x.shape
    resident = module.multiprocessors * (module.threads(name) // BLOCK)
    useful = -(-rows * span // BLOCK)
    return groups, max(1, min(resident // groups, useful, MAX_PARTS))


def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x), one element at a time.

    Args:
        x: (rows, G, span), contiguous, float16, bfloat16 or float32, fewer than 2^29 elements.
        a: (G, m + 1), float32. Groups share no rows here.
        b: (G, n), float32.

    Returns:
        y, like x.

    Raises:
        ValueError: tensors that the kernel does not take.
    """
    _check(x, a, b)
    y = torch.empty_like(x)
    module = _load("stage1_global_atomics", x, a, b)
    grid = _grid(module, "forward", x)
    module.launch("forward", grid, BLOCK, "PPPPiii", x, a, b, y, *x.shape)
    return y


def backward(
    stage: str, g: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients for the gradient g of F(x).

    Args:
        stage: one of `STAGES`.
        g: like x.
        x, a, b: as for `forward`.

    Returns:
        dx (rows, G, span), da (G, m + 1) and db (G, n).

    Raises:
        ValueError: there is no such stage, or the kernel does not take these tensors.
    """
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} is not known; allowed are {', '.join(STAGES)}")
    _check(x, a, b, g)
    rows, groups, span = x.shape
    width = 1
    if stage == "stage6_packs":
        width = vector_width(span, x.itemsize, g.data_ptr(), x.data_ptr())
    module = _load(stage, x, a, b, width)
    grid = _grid(module, "backward", x)
    sizes = rows, groups, span // width
    if stage in ("stage5_two_stages", "stage6_packs"):
        return _backward_in_two_stages(module, grid, sizes, g, x, a, b)
    # the kernels add to da and db, so these start at zero
    dx, da, db = torch.empty_like(x), torch.zeros_like(a), torch.zeros_like(b)
    module.launch("backward", grid, BLOCK, "PPPPPPPiii", g, x, a, b, dx, da, db, *sizes)
    return dx, da, db


def _backward_in_two_stages(
    module: jit.Module,
    grid: tuple[int, int],
    sizes: tuple[int, int, int],
    g: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, parts = grid
    coefficients = a.shape[1] + b.shape[1]
    dx, da, db = torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)
    partial = a.new_empty(groups, coefficients, parts)
    module.launch("backward", grid, BLOCK, "PPPPPPiii", g, x, a, b, dx, partial, *sizes)
    # one warp for each coefficient of each group
    module.launch("finish", (groups * coefficients, 1), WARP, "PPPi", partial, da, db, parts)
    return dx, da, db
