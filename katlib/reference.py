"""The group-rational function and its gradients in plain PyTorch.

Every faster way of computing them is compared with this one. `evaluate` and `gradients` take the
grouped form: x (rows, G, span) with coefficients a (Ga, m + 1) and b (Gb, n). Ga and Gb divide G,
and neighbouring groups share a row of coefficients.
"""

import torch
from torch import Tensor


def sign_of(t: Tensor) -> Tensor:
    """-1 where t < 0, else +1.

    sign(0) is +1, unlike torch.sign's 0, so that a denominator that starts at 0 still learns.
    """
    return torch.where(t < 0, -torch.ones_like(t), torch.ones_like(t))


def rows_for_groups(coefficients: Tensor, groups: int) -> Tensor:
    """Coefficients (Gc, k) as (groups, k), a row for each group.

    It is differentiable: groups that share a row add up in its gradient.
    """
    if len(coefficients) == groups:
        return coefficients
    return coefficients.repeat_interleave(groups // len(coefficients), 0)


def horner(t: Tensor, c: Tensor) -> Tensor:
    """c_0 + c_1 t + ... + c_k t^k, group by group. t (rows, G, span), c (G, k + 1)."""
    value = c[:, -1, None]  # (G, 1)
    for i in range(c.shape[1] - 2, -1, -1):
        value = torch.addcmul(c[:, i, None], value, t)  # (rows, G, span)
    return value


def evaluate(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """F(x) = P(x) / Q(x), differentiable any number of times.

    Args:
        x: (rows, G, span).
        a: (Ga, m + 1), the numerators' coefficients a_0 .. a_m.
        b: (Gb, n), the denominators' coefficients b_1 .. b_n.

    Returns:
        (rows, G, span).
    """
    groups = x.shape[1]
    a, b = rows_for_groups(a, groups), rows_for_groups(b, groups)
    P = horner(x, a)
    Q = horner(x * sign_of(x), with_constant_one(b * sign_of(b)))
    return (P / Q).expand(x.shape)


def evaluate_by_channel(x: Tensor, a: Tensor, b: Tensor, dim: int) -> Tensor:
    """F(x) = P(x) / Q(x) for exported models: each coefficient is a vector over the channels.

    It has more coefficients than `evaluate` and no groups. Runtimes that call one operator after
    the other run through whole rows then, and not through one group after the other: onnxruntime
    takes a quarter of the time.

    Args:
        x: any shape with C channels in dimension `dim`.
        a: (Ga, m + 1), the numerators' coefficients; Ga divides C.
        b: (Gb, n), the denominators' coefficients; Gb divides C.
        dim: the channels' dimension, not negative.

    Returns:
        Like x.
    """
    shape = (-1, *[1] * (x.ndim - 1 - dim))

    def by_channel(coefficients: Tensor) -> list[Tensor]:
        if len(coefficients) > 1:
            coefficients = rows_for_groups(coefficients, x.shape[dim])
        return [column.reshape(shape) for column in coefficients.unbind(1)]

    P = horner_of_list(x, by_channel(a))
    Q = horner_of_list(x.abs(), [x.new_ones(()), *by_channel(b.abs())])
    return (P / Q).expand(x.shape)


def horner_of_list(t: Tensor, c: list[Tensor]) -> Tensor:
    """c_0 + c_1 t + ... + c_k t^k, each coefficient of a shape that broadcasts with t."""
    value = c[-1]
    for coefficient in reversed(c[:-1]):
        value = value * t + coefficient
    return value


def with_constant_one(b: Tensor) -> Tensor:
    """b_1 .. b_n (G, n) as the coefficients 1, b_1 .. b_n (G, n + 1) of a denominator."""
    return torch.cat([b.new_ones(b.shape[0], 1), b], 1)


def gradients(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, da and db for the gradient g of F(x), with every power recomputed from x.

        dx   = g (P' - F Q') / Q          Q' = sign(x) sum_j j |b_j| |x|^(j - 1)
        da_i = sum g x^i / Q              db_j = -sign(b_j) sum g F |x|^j / Q

    Shapes as in `evaluate`; g and dx are like x, da like a, db like b.
    """
    groups = x.shape[1]
    a_rows, b_rows = len(a), len(b)
    a, b = rows_for_groups(a, groups), rows_for_groups(b, groups)
    z = x.abs()
    P, dP = _horner_with_slope(x, a)
    Q, dQ = _horner_with_slope(z, with_constant_one(b.abs()))  # dQ is the slope in |x|
    F = P / Q
    g_over_q = g / Q
    dx = g_over_q * (dP - F * sign_of(x) * dQ)
    da = _sums_with_powers(g_over_q, x, a.shape[1])
    db = -sign_of(b) * _sums_with_powers(g_over_q * F * z, z, b.shape[1])
    return dx, _add_shared_rows(da, a_rows), _add_shared_rows(db, b_rows)


def _horner_with_slope(t: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """A polynomial's value and slope, both by Horner's rule. t (rows, G, span), c (G, k + 1)."""
    value = torch.zeros_like(t) + c[:, -1, None]
    slope = torch.zeros_like(t)
    for i in range(c.shape[1] - 2, -1, -1):
        slope = torch.addcmul(value, slope, t)
        value = torch.addcmul(c[:, i, None], value, t)
    return value, slope


def _sums_with_powers(term: Tensor, t: Tensor, count: int) -> Tensor:
    """Sums over rows and span of term, term t, ..., term t^(count - 1): (G, count)."""
    sums = []
    for _ in range(count):
        sums.append(term.sum((0, 2)))
        term = term * t
    return torch.stack(sums, 1) if sums else term.new_zeros(term.shape[1], 0)


def _add_shared_rows(sums: Tensor, rows: int) -> Tensor:
    """(G, k) as (rows, k): the sums of neighbouring groups that share a row."""
    if len(sums) == rows:
        return sums
    return sums.unflatten(0, (rows, len(sums) // rows)).sum(1)
