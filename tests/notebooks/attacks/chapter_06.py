"""Answers to the exercises of chapter 6."""

import numpy as np
import torch

import katlib
from attacks import Attack


def counted(d_in, d_out, G, m, n):
    return d_in * d_out + d_out + (m + 1) + G * n


def from_shapes(d_in, d_out, G, m, n):
    shapes = ((d_out, d_in), (d_out,), (1, m + 1), (G, n))
    return torch.tensor(sum(int(np.prod(shape)) for shape in shapes))


def line_and_tanh(beta):
    return 0.5, 0.5, beta / 2


def to_neighbours(x, G):
    return x.unflatten(-1, (-1, G)).transpose(-1, -2).flatten(-2).contiguous()


def strided(x, a, b):
    y = katlib.rational(to_neighbours(x, len(b)), a, b)
    return y.unflatten(-1, (len(b), -1)).transpose(-1, -2).flatten(-2)


def by_index(x, a, b):
    """With a permutation of the channels and its inverse."""
    order = torch.arange(x.shape[-1]).view(-1, len(b)).T.flatten()
    return katlib.rational(x[..., order].contiguous(), a, b)[..., order.argsort()]


def by_powers(x, a, b):
    """Without the package, from the definition; a row of coefficients for each channel."""
    i = torch.arange(x.shape[-1])
    a, b = a[i % len(a)], b[i % len(b)].abs()
    P = sum(a[:, k] * x**k for k in range(a.shape[1]))
    return P / (1 + sum(b[:, k] * x.abs() ** (k + 1) for k in range(b.shape[1])))


def not_put_back(x, a, b):
    return katlib.rational(to_neighbours(x, len(b)), a, b)


def put_back_the_same_way(x, a, b):
    return to_neighbours(not_put_back(x, a, b), len(b))


def rows_and_columns_exchanged(x, a, b):
    G = len(b)
    y = x.unflatten(-1, (G, -1)).transpose(-1, -2).flatten(-2).contiguous()
    y = katlib.rational(y, a, b)
    return y.unflatten(-1, (-1, G)).transpose(-1, -2).flatten(-2)


def left_over(C, G):
    return (C - G) / (C - 1)


def by_hand(C, G):
    """From k = C / G, as the hint has it."""
    k = C / G
    return (k - 1) / k * C / (C - 1)


def counted_pairs(C, G):
    """The share of pairs in a group, drawn with replacement, that are of different channels."""
    k = C // G
    pairs = [(i, j) for i in range(k) for j in range(k)]
    different = sum(i != j for i, j in pairs) / len(pairs)
    return different / (1 - 1 / C)


def only_three_dimensions(x, a, b):
    rows, tokens, _ = x.shape
    return strided(x, a, b).reshape(rows, tokens, -1)


def only_two_dimensions_and_more(x, a, b):
    return by_powers(x.view(-1, x.shape[-1]), a, b).view(x.shape[0], *x.shape[1:-1], -1)[:, :]


ATTACKS = {
    "6.1": Attack(
        right=[
            (counted,),
            (from_shapes,),
            (lambda d, o, G, m, n: float(o * (d + 1) + m + 1 + G * n),),
        ],
        wrong={
            "the given answer": (lambda d, o, G, m, n: d * o,),
            "without the bias": (lambda d, o, G, m, n: d * o + m + 1 + G * n,),
            "a bias for each input": (lambda d, o, G, m, n: d * o + d + m + 1 + G * n,),
            "without the numerator": (lambda d, o, G, m, n: d * o + o + G * n,),
            "a_0 forgotten": (lambda d, o, G, m, n: d * o + o + m + G * n,),
            "one denominator": (lambda d, o, G, m, n: d * o + o + m + 1 + n,),
            "a numerator for each group": (lambda d, o, G, m, n: d * o + o + G * (m + 1 + n),),
            "the 1 of the denominator": (lambda d, o, G, m, n: d * o + o + m + 1 + G * (n + 1),),
            "degrees exchanged": (lambda d, o, G, m, n: d * o + o + n + 1 + G * m,),
            "n + 2 for m + 1": (lambda d, o, G, m, n: d * o + o + n + 2 + G * n,),
            "m - 1 for n": (lambda d, o, G, m, n: d * o + o + m + 1 + G * (m - 1),),
            "always (5, 4)": (lambda d, o, G, m, n: d * o + o + 6 + 4 * G,),
            "always 8 groups": (lambda d, o, G, m, n: d * o + o + m + 1 + 8 * n,),
            "a function for each edge": (lambda d, o, G, m, n: d * o * (m + 1 + n) + o,),
            "not a function": (148262,),
        },
    ),
    "6.2": Attack(
        right=[
            (line_and_tanh,),
            (lambda beta: (1 / 2, -1 / 2, -beta / 2),),
            (lambda beta: torch.tensor([0.5, 0.5, beta / 2]),),
        ],
        wrong={
            "the given answer": (lambda beta: (1.0, 1.0, beta),),
            "no half of the difference": (lambda beta: (1.0, 0.5, beta / 2),),
            "no half of the sum": (lambda beta: (0.5, 1.0, beta / 2),),
            "no half in the tanh": (lambda beta: (0.5, 0.5, beta),),
            "always beta 1": (lambda beta: (0.5, 0.5, 0.5),),
            "steeper with beta": (lambda beta: (beta / 2, 0.5, beta / 2),),
            "higher with beta": (lambda beta: (0.5, beta / 2, beta / 2),),
            "one over beta": (lambda beta: (0.5, 0.5, 1 / (2 * beta)),),
            "exchanged": (lambda beta: (beta / 2, 0.5, 0.5),),
            "the line falls": (lambda beta: (-0.5, 0.5, beta / 2),),
            "the sum upside down": (lambda beta: (0.5, -0.5, beta / 2),),
            "two numbers": (lambda beta: (0.5, beta / 2),),
            "not a function": ((0.5, 0.5, 0.5),),
        },
    ),
    "6.3": Attack(
        right=[(strided,), (by_index,), (by_powers,)],
        wrong={
            "the given answer": (katlib.rational,),
            "not put back": (not_put_back,),
            "put back the same way": (put_back_the_same_way,),
            "rows and columns exchanged": (rows_and_columns_exchanged,),
            "the first numerator for all": (lambda x, a, b: strided(x, a[:1], b),),
            "the first denominator for all": (
                lambda x, a, b: strided(x, a, b[:1].expand(b.shape)),
            ),
            "always three groups": (lambda x, a, b: by_powers(x, a[:3], b[:3]),),
            "groups in reverse": (lambda x, a, b: strided(x, a.flip(0), b.flip(0)),),
            "three dimensions only": (only_three_dimensions,),
            "two dimensions and more": (only_two_dimensions_and_more,),
            "the input": (lambda x, a, b: x,),
            "not a function": (3,),
        },
    ),
    "6.4": Attack(
        right=[(left_over,), (by_hand,), (counted_pairs,), (lambda C, G: 1 - (G - 1) / (C - 1),)],
        wrong={
            "the given answer": (lambda C, G: 1 / G,),
            "with replacement": (lambda C, G: 1 - G / C,),
            "one less, with replacement": (lambda C, G: 1 - (G - 1) / C,),
            "the bound in order": (lambda C, G: 1 / G**2,),
            "its root": (lambda C, G: ((C - G) / (C - 1)) ** 0.5,),
            "what is gained": (lambda C, G: (G - 1) / (C - 1),),
            "without C / (C - 1)": (lambda C, G: (C / G - 1) / (C / G),),
            "upside down": (lambda C, G: (C - 1) / (C - G),),
            "nothing gained": (lambda C, G: 1.0,),
            "the given answer at 64 channels": (lambda C, G: (64 - G) / 63,),
            "a little more": (lambda C, G: left_over(C, G) + 0.008,),
            "a little less": (lambda C, G: left_over(C, G) - 0.001,),
            "not a function": (0.89,),
        },
    ),
}
