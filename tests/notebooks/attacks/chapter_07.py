"""Answers to the exercises of chapter 7."""

import math

import torch
from torch.nn.functional import silu

import katlib
from attacks import Attack

ALPHA = katlib.gain("swish")


def layer_by_second_moments(gains):
    moments = [1 / alpha for alpha in gains]
    return 1 / (sum(moments) / len(moments))


def left_over(s, d, L):
    return s * math.sqrt(d / ALPHA) * (s * math.sqrt(d) / 2) ** (L - 1)


def left_over_as_one_power(s, d, L):
    return (s * math.sqrt(d)) ** L / math.sqrt(ALPHA) / 2 ** (L - 1)


def left_over_by_the_map(s, d, L):
    """Layer after layer, with the variance of swish itself at every step."""
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2)
    q = 1.0
    for _ in range(L):
        q = d * s**2 * ((weight @ silu(math.sqrt(q) * z) ** 2) / weight.sum()).item()
    return math.sqrt(q)


def held_down(c, inputs=64):
    """c and the std of the weights for x / (1 + c |x|)."""
    return c, math.sqrt(katlib.gain(lambda z: z / (1 + c * z.abs())) / inputs)


C, STD = held_down(0.8902)

ATTACKS = {
    "7.1": Attack(
        right=[("C", math.sqrt(ALPHA / 576)), ("C", 0.0699), ("C", 0.06986)],
        wrong={
            "the one near 0.02": ("A", 0.0208),
            "the one with the same std": ("D", 0.0417),
            "another map, with its own std": ("B", 0.05),
            "the right std of another map": ("E", math.sqrt(ALPHA / 576)),
            "the function's name": ("swish", 0.0699),
            "several letters": (["C"], 0.0699),
            "the std that it has": ("C", 0.0417),
            "GELU's gain": ("C", math.sqrt(katlib.gain("gelu") / 576)),
            "the gain instead of its root": ("C", ALPHA / 24),
            "the variance": ("C", ALPHA / 576),
            "E[F^2] instead of its inverse": ("C", math.sqrt(1 / ALPHA / 576)),
            "the outputs counted": ("C", math.sqrt(ALPHA / 256)),
            "a neighbour": ("C", 0.0705),
        },
    ),
    "7.2": Attack(
        right=[
            (lambda gains: len(gains) / sum(1 / alpha for alpha in gains),),
            (layer_by_second_moments,),
            (lambda gains: torch.tensor(gains, dtype=torch.float64).reciprocal().mean() ** -1,),
        ],
        wrong={
            "the mean of the gains": (lambda gains: sum(gains) / len(gains),),
            "their geometric mean": (lambda gains: math.prod(gains) ** (1 / len(gains)),),
            "the number of groups left out": (lambda gains: 1 / sum(1 / a for a in gains),),
            "E[F^2] instead of its inverse": (
                lambda gains: sum(1 / a for a in gains) / len(gains),
            ),
            "the root mean square of the gains": (
                lambda gains: math.sqrt(sum(a * a for a in gains) / len(gains)),
            ),
            "the mean of the stds squared": (
                lambda gains: (sum(math.sqrt(a) for a in gains) / len(gains)) ** 2,
            ),
            "amplitudes averaged": (lambda gains: (len(gains) / sum(a**-0.5 for a in gains)) ** 2,),
            "the smallest": (min,),
            "the largest": (max,),
            "the first group": (lambda gains: gains[0],),
        },
    ),
    "7.3": Attack(
        right=[(left_over,), (left_over_as_one_power,), (left_over_by_the_map,)],
        wrong={
            "the first layer ignored": (lambda s, d, L: (s * math.sqrt(d) / 2) ** L,),
            "the first layer guessed": (lambda s, d, L: 1.25 * (s * math.sqrt(d) / 2) ** L,),
            "simulated too roughly": (lambda s, d, L: 0.98 * left_over(s, d, L),),
            "the gain in every layer": (lambda s, d, L: (s * math.sqrt(d / ALPHA)) ** L,),
            "no activation": (lambda s, d, L: (s * math.sqrt(d)) ** L,),
            "the first layer without its gain": (
                lambda s, d, L: s * math.sqrt(d) * (s * math.sqrt(d) / 2) ** (L - 1),
            ),
            "a layer too many": (lambda s, d, L: left_over(s, d, L + 1),),
            "a layer too few": (lambda s, d, L: left_over(s, d, L) / (s * math.sqrt(d) / 2),),
            "the mean square": (lambda s, d, L: left_over(s, d, L) ** 2,),
            "the width left out": (lambda s, d, L: s / math.sqrt(ALPHA) * (s / 2) ** (L - 1),),
            "the width without its root": (
                lambda s, d, L: s * d / math.sqrt(ALPHA) * (s * d / 2) ** (L - 1),
            ),
            "the std left out": (
                lambda s, d, L: math.sqrt(d / ALPHA) * (math.sqrt(d) / 2) ** (L - 1),
            ),
            "the gain instead of its root": (
                lambda s, d, L: s * math.sqrt(d) / ALPHA * (s * math.sqrt(d) / 2) ** (L - 1),
            ),
            "ReLU's gain": (
                lambda s, d, L: s * math.sqrt(d / 2) * (s * math.sqrt(d) / 2) ** (L - 1),
            ),
            "the slope for large inputs": (
                lambda s, d, L: s * math.sqrt(d / ALPHA) * (s * math.sqrt(d / 2)) ** (L - 1),
            ),
        },
    ),
    "7.4": Attack(
        right=[(C, STD), (0.89, 0.275), (0.8902, 0.2753), held_down(0.8897)],
        wrong={
            "c of tanh's slope": held_down(1.05),
            "a c too small": held_down(0.8),
            "a c too large": held_down(1.0),
            "only two digits, below": held_down(0.885),
            "only two digits, above": held_down(0.9),
            "a std of two digits": (C, 0.28),
            "no denominator": (0.0, 0.125),
            "a pole": (-C, STD),
            "the std of swish": (C, 0.2096),
            "the gain left out": (C, 0.125),
            "another width": held_down(C, 256),
            "the gain instead of the std": (C, 64 * STD**2),
            "the variance instead of the std": (C, STD**2),
            "the two exchanged": (STD, C),
        },
    ),
}
