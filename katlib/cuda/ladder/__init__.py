"""The ladder: five ways to sum the coefficients' gradients, from the obvious one to the one that ../rational.cu uses.

Every stage computes the same dx, da and db; each is one small file, to be read in this order. They are for teaching and for the
benchmark: float16, bfloat16 and float32, computed in float32, one element at a time. Sums in stages 1 to 4 change from run to run.
"""

from pathlib import Path

import torch
from torch import Tensor

from .. import TYPES, jit

STAGES = {  # name of the file -> what it changes
    "stage1_global_atomics": "ten global atomics an element",
    "stage2_shared_atomics": "ten shared-memory atomics an element, ten global ones a block",
    "stage3_registers": "sums in registers, ten global atomics a thread",
    "stage4_block_reduction": "sums folded by warp and block, ten global atomics a block",
    "stage5_two_stages": "no atomics: partial sums, then a second kernel",
}
BLOCK = jit.THREADS


def _module(stage: str, x: Tensor, a: Tensor, b: Tensor, *like_x: Tensor) -> jit.Module:
    if stage not in STAGES:
        raise ValueError(f"stage={stage!r} is not known; allowed are {', '.join(STAGES)}")
    if (
        x.dtype not in TYPES
        or x.dtype == torch.float64
        or a.dtype != torch.float32
        or b.dtype != torch.float32
        or not x.numel()
    ):
        raise ValueError(
            f"the ladder is for float16, bfloat16 and float32 with float32 coefficients, and for tensors that are not empty; given: "
            f"{x.dtype} {tuple(x.shape)}, {a.dtype}, {b.dtype}"
        )
    if not all(t.is_contiguous() and t.device == x.device for t in (x, a, b, *like_x)) or any(
        t.shape != x.shape or t.dtype != x.dtype for t in like_x
    ):
        raise ValueError(
            "the ladder's tensors must be contiguous, on one device, and x and g alike"
        )
    macros = (*TYPES[x.dtype], ("M", a.shape[1] - 1), ("N", b.shape[1]))
    return jit.load(Path(__file__).parent / f"{stage}.cu", macros, x.device.index or 0)


def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x), one thread for each element. x (rows, G, span), a (G, m + 1), b (G, n) -> (rows, G, span)."""
    module, y = _module("stage1_global_atomics", x, a, b), torch.empty_like(x)
    module.launch("forward", (-(-x.numel() // BLOCK), 1), BLOCK, "PPPPqqq", x, a, b, y, *x.shape)
    return y


def backward(
    stage: str, g: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (rows, G, span), da (G, m + 1) and db (G, n) for the gradient g of F(x), by one of `STAGES`.

    Raises:
        ValueError: no such stage, a type or shapes that the kernels do not take.
    """
    module = _module(stage, x, a, b, g)
    rows, groups, span = x.shape
    dx, da, db = torch.empty_like(x), torch.zeros_like(a), torch.zeros_like(b)
    resident = module.multiprocessors * (module.threads("backward") // BLOCK)
    parts = max(1, min(resident // groups, -(-rows * span // BLOCK), 65535))
    if stage == "stage1_global_atomics":
        module.launch(
            "backward",
            (-(-x.numel() // BLOCK), 1),
            BLOCK,
            "PPPPPPPqqq",
            g,
            x,
            a,
            b,
            dx,
            da,
            db,
            rows,
            groups,
            span,
        )
    elif stage != "stage5_two_stages":
        module.launch(
            "backward",
            (groups, parts),
            BLOCK,
            "PPPPPPPqqq",
            g,
            x,
            a,
            b,
            dx,
            da,
            db,
            rows,
            groups,
            span,
        )
    else:
        coefficients = a.shape[1] + b.shape[1]
        partial = a.new_empty(groups, coefficients, parts)
        module.launch(
            "backward",
            (groups, parts),
            BLOCK,
            "PPPPPPqqq",
            g,
            x,
            a,
            b,
            dx,
            partial,
            rows,
            groups,
            span,
        )
        module.launch("finish", (groups * coefficients, 1), 32, "PPPi", partial, da, db, parts)
    return dx, da, db
