"""The ladder: five ways to sum the gradients of the coefficients, each a small CUDA file.

They are meant to be read in order, from the obvious way to the one that ../rational.cu uses. Every
stage computes the same dx, da and db. The stages are for teaching and for the benchmark: they take
float16, bfloat16 and float32, compute in float32, and read one element at a time. In stages 1 to 4
the last bits of the sums change from run to run.
"""

from pathlib import Path

import torch
from torch import Tensor

from .. import MAX_PARTS, TYPES, WARP, jit

# name of the file -> what it changes
STAGES = {
    "stage1_global_atomics": "ten global atomics an element",
    "stage2_shared_atomics": "ten shared-memory atomics an element, ten global ones a block",
    "stage3_registers": "sums in registers, ten global atomics a thread",
    "stage4_block_reduction": "sums folded by warp and block, ten global atomics a block",
    "stage5_two_stages": "no atomics: partial sums, then a second kernel",
}
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
    tensors = (x, a, b) if g is None else (x, a, b, g)
    fitting = all(t.is_contiguous() and t.device == x.device for t in tensors)
    alike = g is None or (g.shape == x.shape and g.dtype == x.dtype)
    if not fitting or not alike:
        raise ValueError(
            "the ladder's tensors must be contiguous, on one device, and x and g alike"
        )


def _load(stage: str, x: Tensor, a: Tensor, b: Tensor) -> jit.Module:
    macros = (*TYPES[x.dtype], ("M", a.shape[1] - 1), ("N", b.shape[1]))
    return jit.load(Path(__file__).parent / f"{stage}.cu", macros, x.device.index or 0)


def _blocks(elements: int) -> int:
    """How many blocks there are if each thread takes one element."""
    return -(-elements // BLOCK)


def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x), with one thread for each element.

    Args:
        x: (rows, G, span), contiguous, float16, bfloat16 or float32.
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
    module.launch("forward", (_blocks(x.numel()), 1), BLOCK, "PPPPqqq", x, a, b, y, *x.shape)
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
    module = _load(stage, x, a, b)
    if stage == "stage1_global_atomics":
        grid = (_blocks(x.numel()), 1)
        return _backward_with_atomics(module, grid, g, x, a, b)
    rows, groups, span = x.shape
    # as many blocks as the device holds at once, the same number for each group
    resident = module.multiprocessors * (module.threads("backward") // BLOCK)
    parts = max(1, min(resident // groups, _blocks(rows * span), MAX_PARTS))
    if stage == "stage5_two_stages":
        return _backward_in_two_stages(module, (groups, parts), g, x, a, b)
    return _backward_with_atomics(module, (groups, parts), g, x, a, b)


def _backward_with_atomics(
    module: jit.Module, grid: tuple[int, int], g: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # the kernels add to da and db, so these start at zero
    dx, da, db = torch.empty_like(x), torch.zeros_like(a), torch.zeros_like(b)
    module.launch("backward", grid, BLOCK, "PPPPPPPqqq", g, x, a, b, dx, da, db, *x.shape)
    return dx, da, db


def _backward_in_two_stages(
    module: jit.Module, grid: tuple[int, int], g: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    groups, parts = grid
    coefficients = a.shape[1] + b.shape[1]
    dx, da, db = torch.empty_like(x), torch.empty_like(a), torch.empty_like(b)
    partial = a.new_empty(groups, coefficients, parts)
    module.launch("backward", grid, BLOCK, "PPPPPPqqq", g, x, a, b, dx, partial, *x.shape)
    # one warp for each coefficient of each group
    module.launch("finish", (groups * coefficients, 1), WARP, "PPPi", partial, da, db, parts)
    return dx, da, db
