"""The group-rational function and its gradients in plain PyTorch: what every faster way of computing them is compared with.

All functions here take the grouped form: x (rows, G, span) with coefficients a (Ga, m + 1) and b (Gb, n); Ga and Gb divide G, and neighbouring
groups share a row.
"""

import torch
from torch import Tensor


def sign_of(t: Tensor) -> Tensor:
    """-1 where t < 0, else +1. sign(0) = +1, unlike torch.sign: a denominator that starts at 0 must still learn."""
    return torch.where(t < 0, -torch.ones_like(t), torch.ones_like(t))


def shared(c: Tensor, G: int) -> Tensor:
    """Coefficients (Gc, k) as (G, k), one row for each group; differentiable, so that what shares a row adds to its gradient."""
    return c if len(c) == G else c.repeat_interleave(G // len(c), 0)


def horner(t: Tensor, c: Tensor) -> Tensor:
    """c_0 + c_1 t + ... + c_k t^k, group by group. t (rows, G, span), c (G, k + 1)."""
    value = c[:, -1, None]  # (G, 1)
    for i in range(c.shape[1] - 2, -1, -1):
        value = torch.addcmul(c[:, i, None], value, t)  # (rows, G, span)
    return value


def evaluate(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x) in plain PyTorch, differentiable as often as you like. x (rows, G, span), a (Ga, m + 1), b (Gb, n)."""
    a, b = (shared(c, x.shape[1]) for c in (a, b))
    ones = torch.ones_like(b[:, :1]) if b.shape[1] else b.new_ones(b.shape[0], 1)
    Q = horner(x * sign_of(x), torch.cat([ones, b * sign_of(b)], 1))
    return (horner(x, a) / Q).expand(x.shape)


def gradients(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, da and db for the gradient g of F(x), with every power recomputed from x. Shapes as in `evaluate`.

    dx   = g (P' - F Q') / Q          Q' = sign(x) sum_j j |b_j| |x|^(j - 1)
    da_i = sum g x^i / Q              db_j = -sign(b_j) sum g F |x|^j / Q
    """
    G, counts = x.shape[1], (len(a), len(b))
    a, b = shared(a, G), shared(b, G)
    s, z = sign_of(x), x.abs()
    P = torch.zeros_like(x) + a[:, -1, None]
    dP = torch.zeros_like(x)
    for i in range(a.shape[1] - 2, -1, -1):
        dP = torch.addcmul(P, dP, x)  # the chain of P' runs one step behind that of P
        P = torch.addcmul(a[:, i, None], P, x)
    Q = torch.zeros_like(x)
    dQ = torch.zeros_like(x)  # dQ / d|x|
    for c in [
        *b.abs().unbind(1)[::-1],
        torch.ones_like(b[:, :1]).flatten() if b.shape[1] else b.new_ones(b.shape[0]),
    ]:
        dQ = torch.addcmul(Q, dQ, z)
        Q = torch.addcmul(c[:, None], Q, z)
    F = P / Q
    term = g / Q
    dx = term * (dP - F * s * dQ)
    v = -term * F
    da, db = [term.sum((0, 2))], []
    for _ in range(1, a.shape[1]):
        term = term * x
        da.append(term.sum((0, 2)))
    for sign in sign_of(b).unbind(1):
        v = v * z
        db.append(sign * v.sum((0, 2)))
    sums = torch.stack(da, 1), torch.stack(db, 1) if db else torch.zeros_like(b)
    return dx, *(
        c if count == G else c.unflatten(0, (count, G // count)).sum(1)
        for c, count in zip(sums, counts)
    )
