"""Answers to the exercises of chapter 2."""

import torch

from attacks import Attack


def identity(t):
    return t


def minus(t):
    return -t


def nothing(t):
    return 0 * t


def half(t):
    return t / 2


def half_distance(t):
    return abs(t) / 2


SUM_AND_DIFFERENCE = [[identity, identity], [identity, minus]]

ATTACKS = {
    "2.1": Attack(
        right=[([4, 2, 0],), (torch.tensor([4.0, 2.0, 0.0]),), ((4, 2, 0),)],
        wrong={
            "all of them": ([8, 8, 8],),
            "on the grid only": ([4, 0, 0],),
            "as if there were no end": ([4, 4, 4],),
            "the last bump forgotten": ([4, 1, 0],),
            "hats": ([2, 0, 0],),
            "the last bump everywhere": ([4, 2, 1],),
            "one number": (4,),
        },
    ),
    "2.2": Attack(
        right=[
            ([-1.4, -1.0, -0.6, -0.2, 0.2, 0.6, 1.0, 1.4],),
            (torch.linspace(-1.4, 1.4, 8),),
            ([-1.42, -1.0, -0.6, -0.2, 0.2, 0.62, 1.0, 1.38],),
        ],
        wrong={
            "at the ends of the grid": ([-1, -1, -0.6, -0.2, 0.2, 0.6, 1, 1],),
            "spread over the grid": (torch.linspace(-1, 1, 8),),
            "without the outer two": ([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0],),
            "falling": (torch.linspace(1.4, -1.4, 8),),
            "too steep": (torch.linspace(-1.5, 1.5, 8),),
            "shifted": (torch.linspace(-1.35, 1.45, 8),),
        },
    ),
    "2.3": Attack(
        right=[
            (SUM_AND_DIFFERENCE, [[half, half_distance]]),
            # y + relu(x - y)
            ([[nothing, identity], [identity, minus]], [[identity, torch.relu]]),
            # x + relu(y - x)
            (((identity, nothing), (minus, identity)), ((identity, torch.relu),)),
            # the sum shifted, and the shift undone
            (
                [[lambda t: t + 3, identity], [minus, identity]],
                [[lambda t: t / 2 - 1.5, half_distance]],
            ),
        ],
        wrong={
            "the first input": (SUM_AND_DIFFERENCE, [[half, half]]),
            "the smaller": (SUM_AND_DIFFERENCE, [[half, lambda t: -abs(t) / 2]]),
            "the product": (
                SUM_AND_DIFFERENCE,
                [[lambda t: t**2 / 4, lambda t: -(t**2) / 4]],
            ),
            "the mean": (SUM_AND_DIFFERENCE, [[half, nothing]]),
            "the distance": (SUM_AND_DIFFERENCE, [[nothing, abs]]),
            "no halves": (SUM_AND_DIFFERENCE, [[identity, abs]]),
            "a smooth absolute value": (
                SUM_AND_DIFFERENCE,
                [[half, lambda t: (t**2 + 0.01).sqrt() / 2]],
            ),
            "larger in absolute value": (
                [[abs, abs], [abs, lambda t: -abs(t)]],
                [[half, half_distance]],
            ),
            "one row": ([[identity, identity]], [[half, half_distance]]),
            "a flat list": ([identity, minus], [half, half_distance]),
            "a function": (max, max),
        },
    ),
    "2.4": Attack(
        right=[
            (lambda u, a, s: torch.exp((u - s) / a),),
            (lambda u, a, s: torch.exp(u / a) * torch.exp(torch.tensor(-s / a)),),
            (lambda u, a, s: (u / a - s / a).exp(),),
        ],
        wrong={
            "nothing undone": (lambda u, a, s: torch.exp(u),),
            "the scale only": (lambda u, a, s: torch.exp(u / a),),
            "the shift only": (lambda u, a, s: torch.exp(u - s),),
            "in the wrong order": (lambda u, a, s: torch.exp(u / a - s),),
            "scaled once more": (lambda u, a, s: torch.exp(a * u + s),),
            "outside of the exponential": (lambda u, a, s: (torch.exp(u) - s) / a,),
            "the sign of a lost": (lambda u, a, s: torch.exp((u - s) / abs(a)),),
        },
    ),
}
