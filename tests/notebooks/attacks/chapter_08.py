"""Chapter 8: gradients by hand, the other denominator, a silent batch, a scale for each group."""

import torch

from attacks import Attack


def inner(x, b):
    return sum(c * x**k for k, c in enumerate(b, 1))


def numerator(x, a):
    return sum(c * x**i for i, c in enumerate(a))


def sign(t):
    return torch.where(t < 0, -1.0, 1.0).to(t)


def by_formula(x, a, b, j, *, sign=sign, power=None, square=2, minus=-1, of=None):
    """The solution of 8.2, with one ingredient changed."""
    S = inner(x, b)
    power = x**j if power is None else power(x, j)
    signs = sign(S) if of is None else of(x, b, j)
    return minus * numerator(x, a) / (1 + S.abs()) ** square * signs * power


def by_autograd(x, a, b, j):
    b = b.clone().requires_grad_()
    S = inner(x, b)
    F = numerator(x, a) / (1 + torch.where(S >= 0, S, -S))
    return torch.stack([torch.autograd.grad(f, b, retain_graph=True)[0][j - 1] for f in F])


def with_ratio(x, a, b, j):
    """With F in place of P."""
    S = inner(x, b)
    Q = torch.where(S < 0, 1 - S, 1 + S)
    return torch.where(S < 0, 1.0, -1.0) * numerator(x, a) / Q / Q * x**j


def other(**options):
    return (lambda x, a, b, j: by_formula(x, a, b, j, **options),)


def scale_by_blocks(g, x, s, slope, *, at=True, size=True, factor=True, mean=False, order="near"):
    """The solution of 8.4, with one ingredient left out."""
    width = x.shape[1] // len(s)
    scale = s.repeat_interleave(width) if order == "near" else s.repeat(width)
    common = slope(scale * x if at else x) * (g if size else 1)
    terms = common * (x if factor else 1)
    if order == "near":
        terms = terms.unflatten(1, (len(s), -1)).transpose(1, 2)
    else:
        terms = terms.unflatten(1, (-1, len(s)))
    ds = terms.mean((0, 1)) if mean else terms.sum((0, 1))
    return common * scale, ds


def scale_by_loop(g, x, s, slope):
    dx, ds = [], []
    for scale, some, upstream in zip(s, x.chunk(len(s), 1), g.chunk(len(s), 1)):
        dx.append(upstream * scale * slope(scale * some))
        ds.append((upstream * some * slope(scale * some)).sum())
    return torch.cat(dx, 1), torch.stack(ds)


def scale_without(**options):
    return (lambda g, x, s, slope: scale_by_blocks(g, x, s, slope, **options),)


def no_scale_in_dx(g, x, s, slope):
    scale = s.repeat_interleave(x.shape[1] // len(s))
    return g * slope(scale * x), scale_by_loop(g, x, s, slope)[1]


def no_slope(g, x, s, slope):
    return scale_by_loop(g, x, s, torch.ones_like)


def one_sum(g, x, s, slope):
    dx, ds = scale_by_loop(g, x, s, slope)
    return dx, ds.sum().expand_as(ds)


def first_row(g, x, s, slope):
    """ds from the first row alone."""
    return scale_by_loop(g, x, s, slope)[0], scale_by_loop(g[:1], x[:1], s, slope)[1]


ATTACKS = {
    "8.1": Attack(
        right=[
            ([1, 3], [4, -5], 11),
            (torch.tensor([1.0, 3.0]), (4.0, -5.0), torch.tensor(11.0)),
            ([1, 3], [4, -5], [11]),
        ],
        wrong={
            "what stands in the exercise": ([0, 0], [0, 0], 0),
            "slope 0 of |b|": ([1, 3], [4, -5], 0),
            "no minus": ([1, 3], [4, -5], -11),
            "x instead of |x|": ([1, 3], [4, -5], -13),
            "no |x|": ([1, 3], [4, -5], 5),
            "means": ([1, 3], [2, -2.5], 5.5),
            "without g": ([1, 1], [2, -1], 3),
            "dx is a sum": ([4, 4], [4, -5], 11),
            "dx is x": ([1, -2], [4, -5], 11),
            "a_0 and a_1 exchanged": ([1, 3], [-5, 4], 11),
            "|x| in a_1": ([1, 3], [4, 7], 11),
        },
    ),
    "8.2": Attack(
        right=[(by_formula,), (by_autograd,), (with_ratio,)],
        wrong={
            "what stands in the exercise": (lambda x, a, b, j: torch.zeros_like(x),),
            "slope 0 where S is 0": other(sign=torch.sign),
            "no sign": other(sign=torch.ones_like),
            "the sign of b_j": other(of=lambda x, b, j: sign(b[j - 1])),
            "the sign of b_j x^j": other(of=lambda x, b, j: sign(b[j - 1] * x**j)),
            "the other sign at S = 0": other(sign=lambda S: -sign(-S)),
            "version A": other(of=lambda x, b, j: sign(b[j - 1]), power=lambda x, j: x.abs() ** j),
            "the absolute value of x": other(power=lambda x, j: x.abs() ** j),
            "Q instead of its square": other(square=1),
            "no Q": other(square=0),
            "no minus": other(minus=1),
            "j from 0": other(power=lambda x, j: x ** (j - 1)),
            "no power": other(power=lambda x, j: torch.ones_like(x)),
            "no P": (lambda x, a, b, j: by_formula(x, torch.ones(1), b, j),),
            "only the constant of P": (lambda x, a, b, j: by_formula(x, a[:1], b, j),),
            "only b_1": (lambda x, a, b, j: by_formula(x, a, b[:1], j),),
            "a word of its own": ("8",),
            "an error": (lambda x, a, b, j: b[99],),
        },
    ),
    "8.3": Attack(
        right=[([1.0, -1.0, 2.5, -2.5],), ([3, 0.5, -0.5, -3],), (torch.tensor([2, -2, 7, -7]),)],
        wrong={
            "what stands in the exercise": ([1.0, 2.0, 3.0, 4.0],),
            "zeros": ([0.0, 0.0, 1.0, -1.0],),
            "a pair twice": ([1.0, -1.0, 1.0, -1.0],),
            "only the sum is 0": ([1.0, 2.0, 3.0, -6.0],),
            "only b_1": ([3.0, 4.0, -4.9, -0.9949874371066197],),
            "nearly": ([1.0, -1.0, 2.0, -2.001],),
            "a large pair hides a small one": ([10.0, -10.0, 0.5, -0.50025],),
            "too large": ([100, -100, 0.1, -0.10005],),
            "too small": ([1e-5, -1e-5, 2e-5, -3e-5],),
            "three": ([1.0, -1.0, 2.0],),
        },
        harmless=("the other sign", "twice"),
    ),
    "8.4": Attack(
        right=[(scale_by_blocks,), (scale_by_loop,)],
        wrong={
            "what stands in the exercise": (
                lambda g, x, s, slope: (torch.zeros_like(x), torch.zeros_like(s)),
            ),
            "slope at x": scale_without(at=False),
            "without g": scale_without(size=False),
            "without x in ds": scale_without(factor=False),
            "means": scale_without(mean=True),
            "every G-th channel": scale_without(order="far"),
            "without s in dx": (no_scale_in_dx,),
            "without the slope": (no_slope,),
            "one sum for all groups": (one_sum,),
            "one row": (first_row,),
            "the size of s": (lambda g, x, s, slope: scale_by_loop(g, x, s.abs(), slope),),
            "exchanged": (lambda g, x, s, slope: scale_by_loop(g, x, s, slope)[::-1],),
        },
    ),
}
