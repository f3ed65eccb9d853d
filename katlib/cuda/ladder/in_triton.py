"""The end of the ladder in Triton.

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
def backward(
    g, x, a, b, dx, partial, rows, span, M: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr
):
    """A program takes tiles of TILE elements of one group: tiles part, part + parts, ..."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    part, parts = tl.program_id(1), tl.num_programs(1)
    k = tl.arange(0, 16)
    sums, zeros = tl.zeros((16,), tl.float32), tl.zeros((TILE,), tl.float32)
    for first in range(part * TILE, rows * span, parts * TILE):
        number = first + tl.arange(0, TILE)
        inside = number < rows * span
        offset = (number // span * groups + group) * span + number % span
        X = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        G = tl.load(g + offset, mask=inside, other=0.0).to(tl.float32)
        Z = tl.abs(X)
        P, dP, Q, dQ = zeros, zeros, zeros, zeros
        for i in tl.static_range(M + 1):
            dP = dP * X + P
            P = P * X + tl.load(a + group * (M + 1) + M - i)
        for j in tl.static_range(N):
            dQ = dQ * Z + Q
            Q = Q * Z + tl.abs(tl.load(b + group * N + N - 1 - j))
        dQ = dQ * Z + Q
        r = 1 / (Q * Z + 1)
        F, term = P * r, G * r
        dX = term * (dP - tl.where(X < 0, -F, F) * dQ)
        tl.store(dx + offset, dX.to(dx.dtype.element_ty), mask=inside)
        v = term * F
        for i in tl.static_range(M + 1):
            sums += tl.where(k == i, tl.sum(term), 0.0)
            term *= X
        for j in tl.static_range(N):
            v *= Z
            sums += tl.where(k == M + 1 + j, tl.sum(v), 0.0)
    # each program writes where no other program writes
    tl.store(partial + (group * (M + 1 + N) + k) * parts + part, sums, mask=k < M + 1 + N)


def gradients(
    g: Tensor, x: Tensor, a: Tensor, b: Tensor, parts: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, da and db as of `katlib.cuda.ladder.backward`, by `parts` programs for each group."""
    rows, groups, span = x.shape
    sizes = a.shape[1], b.shape[1]
    dx, partial = torch.empty_like(x), x.new_empty(groups, sum(sizes), parts, dtype=torch.float32)
    M, N = sizes[0] - 1, sizes[1]
    backward[groups, parts](g, x, a, b, dx, partial, rows, span, M=M, N=N, TILE=TILE)
    # the second stage, in a fixed order
    da, db = partial.double().sum(-1).float().split(sizes, 1)
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
