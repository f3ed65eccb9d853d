"""The end of the ladder in Triton, for polynomials of degrees 5 and 4.

    python -m katlib.cuda.ladder.in_triton

checks it against float64. With TRITON_INTERPRET=1 in the environment, it needs no GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import katlib

# elements that a program adds up at once
TILE = 1024


@triton.jit
def backward(g, x, a, b, dx, partial, rows, span, TILE: tl.constexpr):
    """A program takes tiles of TILE elements of one group: tiles part, part + parts, ..."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    part, parts = tl.program_id(1), tl.num_programs(1)
    a += group * 6
    b += group * 4
    a0, a1, a2 = tl.load(a), tl.load(a + 1), tl.load(a + 2)
    a3, a4, a5 = tl.load(a + 3), tl.load(a + 4), tl.load(a + 5)
    b1, b2 = tl.abs(tl.load(b)), tl.abs(tl.load(b + 1))
    b3, b4 = tl.abs(tl.load(b + 2)), tl.abs(tl.load(b + 3))
    zeros = tl.zeros((TILE,), tl.float32)
    da0, da1, da2, da3, da4, da5 = zeros, zeros, zeros, zeros, zeros, zeros
    db1, db2, db3, db4 = zeros, zeros, zeros, zeros
    for first in range(part * TILE, rows * span, parts * TILE):
        number = first + tl.arange(0, TILE)
        inside = number < rows * span
        offset = (number // span * groups + group) * span + number % span
        X = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        G = tl.load(g + offset, mask=inside, other=0.0).to(tl.float32)
        Z = tl.abs(X)
        P = a0 + X * (a1 + X * (a2 + X * (a3 + X * (a4 + X * a5))))
        dP = a1 + X * (2 * a2 + X * (3 * a3 + X * (4 * a4 + X * (5 * a5))))
        Q = 1 + Z * (b1 + Z * (b2 + Z * (b3 + Z * b4)))
        dQ = b1 + Z * (2 * b2 + Z * (3 * b3 + Z * (4 * b4)))
        r = 1 / Q
        F, term = P * r, G * r
        dX = term * (dP - tl.where(X < 0, -F, F) * dQ)
        tl.store(dx + offset, dX.to(dx.dtype.element_ty), mask=inside)
        v = term * F * Z
        da0, db1, term, v = da0 + term, db1 + v, term * X, v * Z
        da1, db2, term, v = da1 + term, db2 + v, term * X, v * Z
        da2, db3, term, v = da2 + term, db3 + v, term * X, v * Z
        da3, db4, term = da3 + term, db4 + v, term * X
        da4, da5 = da4 + term, da5 + term * X
    # each program writes where no other program writes
    partial += group * 10 * parts + part
    tl.store(partial, tl.sum(da0))
    tl.store(partial + parts, tl.sum(da1))
    tl.store(partial + 2 * parts, tl.sum(da2))
    tl.store(partial + 3 * parts, tl.sum(da3))
    tl.store(partial + 4 * parts, tl.sum(da4))
    tl.store(partial + 5 * parts, tl.sum(da5))
    tl.store(partial + 6 * parts, tl.sum(db1))
    tl.store(partial + 7 * parts, tl.sum(db2))
    tl.store(partial + 8 * parts, tl.sum(db3))
    tl.store(partial + 9 * parts, tl.sum(db4))


def gradients(
    g: Tensor, x: Tensor, a: Tensor, b: Tensor, parts: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, da and db as of `katlib.cuda.ladder.backward`, by `parts` programs for each group.

    Args:
        g, x: (rows, groups, span), contiguous.
        a, b: (groups, 6) and (groups, 4), in float32.
        parts: programs for each group.
    """
    rows, groups, span = x.shape
    dx, partial = torch.empty_like(x), x.new_empty(groups, 10, parts, dtype=torch.float32)
    backward[groups, parts](g, x, a, b, dx, partial, rows, span, TILE=TILE)
    # the second stage, in a fixed order
    da, db = partial.double().sum(-1).float().split((6, 4), 1)
    return dx, da, torch.where(b < 0, db, -db)


def main() -> None:
    """Prints the largest errors against float64."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, g = torch.randn(2, 257, 8, 24, device=device)
    a, b = torch.randn(8, 6, device=device), torch.randn(8, 4, device=device)
    leaves = [t.double().requires_grad_() for t in (x.flatten(1), a, b)]
    y = katlib.rational_reference(*leaves)
    exact = torch.autograd.grad(y, leaves, g.flatten(1).double())
    for name, ours, expected in zip(("dx", "da", "db"), gradients(g, x, a, b), exact):
        error = (ours.view_as(expected) - expected).abs().max() / expected.abs().max()
        print(f"{name}: largest error {error:.0e} of the largest value")


if __name__ == "__main__":
    main()
