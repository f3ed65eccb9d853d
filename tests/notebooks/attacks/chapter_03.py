"""Answers to the exercises of chapter 3."""

import torch
from torch.nn import functional as F

from attacks import Attack, changed
from katlib.book.meter import meter
from katlib.spline import bspline_basis

# ---- 3.1: nanoseconds


MANY, FUSED = 1762 / 20, 189 / 80

# ---- 3.2: kernels, and bytes that they write for each input


def values(G, K):
    return sum(G + 2 * K - d for d in range(1, K + 1))


def count(G, K):
    return 4 + 9 * K, 7 * (G + 2 * K) + 28 * values(G, K)


def count_in_a_loop(G, K):
    kernels, size, functions = 4, 7 * (G + 2 * K), G + 2 * K
    for _ in range(K):
        kernels, functions = kernels + 9, functions - 1
        size += 7 * 4 * functions
    return torch.tensor([kernels, size])


def by_the_meter(G, K):
    x, knots = torch.empty(10**7, device="meta"), torch.empty(G + 2 * K + 1, device="meta")
    m = meter(bspline_basis, x, knots, K)
    return len(m.kernels), m.made / 10**7


# ---- 3.3: the factor, and its limit

LIMIT = 262 / 19


def saving(d_in, d_out, G, K):
    basis, rest = 9 * values(G, K), 2 * (G + K) + 3
    return (basis + rest) / (basis / d_out + rest)


def saving_by_bills(d_in, d_out, G, K):
    basis, rest = 9 * values(G, K), 2 * (G + K) + 3
    return torch.tensor(d_in * d_out * (basis + rest) / (d_in * basis + d_in * d_out * rest))


# ---- 3.4: the cubic basis


def ramps(x, knots, power=3):
    return F.relu(x[..., None] - knots) ** power


def by_least_squares(x, knots, power=3):
    t = knots.double()
    samples = torch.linspace(t[0], t[-1], 400, dtype=torch.float64)
    values = bspline_basis(samples, t, 3)
    weights = torch.linalg.pinv(ramps(samples, t, power)) @ values
    return ramps(x, knots, power) @ weights.to(x.dtype)


def by_divided_differences(x, knots, scaled=True):
    t = knots.double()
    weights = torch.zeros(len(t), len(t) - 4, dtype=torch.float64)
    for k in range(len(t) - 4):
        own = t[k : k + 5]
        differences = own - own[:, None] + torch.eye(5)
        weights[k : k + 5, k] = (own[4] - own[0] if scaled else 1) / differences.prod(1)
    return ramps(x, knots) @ weights.to(x.dtype)


def local(x, knots):
    """The four values that are not 0, put into their places."""
    own = torch.bucketize(x, knots, right=True) - 1
    nonzero = torch.ones_like(x)[..., None]
    for d in range(1, 4):
        places = own[..., None] + torch.arange(d)
        above, below = knots[places + 1], knots[places + 1 - d]
        share = nonzero * (x[..., None] - below) / (above - below)
        nonzero = F.pad(nonzero - share, (0, 1)) + F.pad(share, (1, 0))
    places = own[..., None] - 3 + torch.arange(4)
    return torch.zeros(*x.shape, len(knots) - 4).scatter(-1, places, nonzero)


def on_equal_intervals(x, knots):
    """The formula of chapter 2."""
    u = ((x[..., None] - knots[2:-2]) / (knots[1] - knots[0])).abs()
    return F.relu(2 - u) ** 3 / 6 - F.relu(1 - u) ** 3 * (4 / 6)


def slow(x, knots):
    return bspline_basis(x, knots, 3)


def unseen(x, knots):
    """Computed where the meter does not see it."""
    values = bspline_basis(torch.from_numpy(x.numpy().copy()), knots, 3)
    if x.numel() > 1000:
        return torch.from_numpy(values.numpy().copy())
    return values


def out_of_sight(x, knots):
    """By numpy alone."""
    t, x = knots.numpy(), x.numpy()[..., None]
    values = ((t[:-1] <= x) & (x < t[1:])).astype(x.dtype)
    for d in range(1, 4):
        left = (x - t[: -d - 1]) / (t[d:-1] - t[: -d - 1]) * values[..., :-1]
        values = left + (t[d + 1 :] - x) / (t[d + 1 :] - t[1:-d]) * values[..., 1:]
    return torch.from_numpy(values)


def more_in_place(x, knots):
    """The slow one, and two kernels more that change a tensor in place."""
    return slow(x, knots).mul_(2).div_(2)


def nearest(x, knots):
    """A table, and no more than its nearest entry."""
    samples = torch.linspace(knots[3], knots[-4], 100_001, dtype=x.dtype)
    share = (x - knots[3]) / (knots[-4] - knots[3])
    return bspline_basis(samples, knots, 3)[(share * 100_000).round().long()]


def right_for_few(x, knots):
    return by_least_squares(x, knots) if x.numel() <= 1000 else 0 * ramps(x, knots)[..., :-4]


ATTACKS = {
    "3.1": Attack(
        right=[
            ([MANY, MANY, FUSED],),
            (torch.tensor([88.1, 88.1, 2.3625]),),
            ((88, 88, 2.4),),
            ((90, 90, 2.36),),
        ],
        wrong={
            "the arithmetic alone": ([FUSED, FUSED / 10, FUSED],),
            "faster arithmetic helps": ([MANY, MANY / 10, FUSED],),
            "the bytes alone": ([MANY, MANY, 36 / 20],),
            "one after the other": ([MANY + FUSED, MANY + FUSED / 10, 36 / 20 + FUSED],),
            "the answer of the notebook": ([1.8, 1.8, 1.8],),
            "the comparisons too": ([MANY, MANY, 233 / 80],),
            "the faster processor again": ([MANY, MANY, FUSED / 10],),
            "two times": ([MANY, FUSED],),
        },
    ),
    "3.2": Attack(
        right=[(count,), (count_in_a_loop,)],
        # a list of tensors with one number each is a list of numbers
        harmless=("another shape",),
        wrong={
            "the result alone": (lambda G, K: (31, 4 * (G + K)),),
            "31 kernels always": (lambda G, K: (31, count(G, K)[1]),),
            "no kernels for the knots": (lambda G, K: (4 + 7 * K, count(G, K)[1]),),
            "no interval": (lambda G, K: (9 * K, 28 * values(G, K)),),
            "comparisons of four bytes": (
                lambda G, K: (4 + 9 * K, 16 * (G + 2 * K) + 28 * values(G, K)),
            ),
            "no & and no conversion": (
                lambda G, K: (4 + 9 * K, 2 * (G + 2 * K) + 28 * values(G, K)),
            ),
            "the same number of functions in each degree": (
                lambda G, K: (4 + 9 * K, 7 * (G + 2 * K) + 28 * K * (G + K)),
            ),
            "the knots for each input": (
                lambda G, K: (4 + 9 * K, 7 * (G + 2 * K) + 36 * values(G, K)),
            ),
            "numbers, not bytes": (lambda G, K: (4 + 9 * K, 4 * (G + 2 * K) + 7 * values(G, K)),),
            "G = 5 only": (lambda G, K: count(5, K),),
            "K = 3 only": (lambda G, K: count(G, 3),),
            "a plane": (lambda G, K: (4 + 9 * K, 63 * G + 350 * K - 532),),
            "by the meter": (by_the_meter,),
        },
    ),
    "3.3": Attack(
        right=[(saving, LIMIT), (saving_by_bills, 13.8)],
        wrong={
            "only the basis": (lambda d_in, d_out, G, K: d_out, LIMIT),
            "the limit": (
                lambda d_in, d_out, G, K: 1 + 9 * values(G, K) / (2 * (G + K) + 3),
                LIMIT,
            ),
            "without the 3": (
                lambda d_in, d_out, G, K: (
                    (9 * values(G, K) + 2 * (G + K)) / (9 * values(G, K) / d_out + 2 * (G + K))
                ),
                LIMIT,
            ),
            "7 for each value": (
                lambda d_in, d_out, G, K: (
                    (7 * values(G, K) + 2 * (G + K) + 3)
                    / (7 * values(G, K) / d_out + 2 * (G + K) + 3)
                ),
                LIMIT,
            ),
            "divided by the inputs": (lambda d_in, d_out, G, K: saving(d_out, d_in, G, K), LIMIT),
            "the inverse": (lambda *sizes: 1 / saving(*sizes), LIMIT),
            "always K = 3": (lambda d_in, d_out, G, K: saving(d_in, d_out, G, 3), LIMIT),
            "always G = 5": (lambda d_in, d_out, G, K: saving(d_in, d_out, 5, K), LIMIT),
            "no limit": (saving, None),
            "the recursion alone": (saving, 9 * 27 / 19),
            "times a linear map": (saving, 131),
            "one layer, not the limit": (saving, 13.6),
        },
    ),
    "3.4": Attack(
        right=[(by_least_squares,), (by_divided_differences,)],
        wrong={
            "as it was": (slow,),
            "compiled": (torch.compile(slow, backend="eager"),),
            "the nearest entry of a table": (nearest,),
            "something else for many inputs": (right_for_few,),
            "in float32": (lambda x, knots: by_least_squares(x.float(), knots.float()),),
            "as it was, and in place": (more_in_place,),
            "the slow one behind copies": (unseen,),
            "out of the meter's sight": (out_of_sight,),
            "equal intervals only": (on_equal_intervals,),
            "squares": (lambda x, knots: by_least_squares(x, knots, power=2),),
            "ReLUs": (lambda x, knots: by_least_squares(x, knots, power=1),),
            "not scaled": (lambda x, knots: by_divided_differences(x, knots, scaled=False),),
            "moved": (lambda x, knots: by_least_squares(x + 0.05, knots),),
            "the order turned around": (changed(by_least_squares, lambda basis: basis.flip(-1)),),
            "the ramps alone": (lambda x, knots: ramps(x, knots)[..., :-4],),
            "functions first": (changed(by_least_squares, lambda basis: basis.movedim(-1, 0)),),
        },
    ),
}
