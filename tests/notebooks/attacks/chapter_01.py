"""Answers to the exercises of chapter 1."""

import math

import torch

from attacks import Attack


def same_for_every_error(eps):
    return [9.0, 9.0]


ATTACKS = {
    "1.1": Attack(
        right=[
            ([1, 1, 1], [1, 0, -2], [1, -1.5, 0.5]),
            # in another order
            ([1.0, 1.0, 1.0], [0.0, -2.0, 1.0], [-1.5, 0.5, 1.0]),
            # the weights share out differently between the layers
            (torch.tensor([2.0, 4.0, 0.5]), [2, 0, -1], [0.5, -0.375, 1.0]),
            # all units face left: the corners and their changes of slope are the same
            ([-1, -1, -1], [-1, 0, 2], [1, -1.5, 0.5]),
        ],
        wrong={
            "the answer that stands there": ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
            "the corners' signs": ([1, 1, 1], [-1, 0, 2], [1, -1.5, 0.5]),
            "not levelled off": ([1, 1, 1], [1, 0, -2], [1, -1.5, 0.0]),
            "not turned down": ([1, 1, 1], [1, 0, -2], [1, 0, 0.5]),
            "slopes instead of their changes": ([1, 1, 1], [1, 0, -2], [1, -0.5, 0]),
            "a roof with equal sides": ([1, 1, 1], [1, 0, -1], [1, -2, 1]),
            "two units": ([1, 1], [1, 0], [1, -1.5]),
            "too large to compute": ([1e308, 1, 1], [1, 0, -2], [1e308, -1.5, 0.5]),
            "a function": (torch.sign, torch.sign, torch.sign),
        },
    ),
    "1.2": Attack(
        right=[(1537, 960), (1537.0, torch.tensor(960))],
        wrong={
            "the answer that stands there": (0, 0),
            "no bias": (1536, 960),
            "one linear map": (769, 960),
            "ViT-T": (385, 960),
            "one block": (1537, 80),
            "one function for each block": (1537, 120),
            "one coefficient for each function": (1537, 96),
            "a function for each hidden unit": (1537, 12 * 3072 * 10),
            "the other way round": (960, 1537),
        },
    ),
    "1.3": Attack(
        right=[
            (lambda eps: math.ceil(1 / math.sqrt(2 * eps)),),
            (lambda eps: torch.tensor(0.5 / eps).sqrt().ceil(),),
            (lambda eps: next(n for n in range(1, 10**6) if 0.5 / n**2 <= eps),),
        ],
        wrong={
            "the answer that stands there": (lambda eps: 1,),
            "not lowered": (lambda eps: math.ceil(1 / math.sqrt(eps)),),
            "lowered entirely": (lambda eps: math.ceil(math.sqrt(0.25 / eps)),),
            "rounded down": (lambda eps: math.floor(1 / math.sqrt(2 * eps)),),
            "not rounded": (lambda eps: 1 / math.sqrt(2 * eps),),
            "an interval of length 1": (lambda eps: math.ceil(0.5 / math.sqrt(2 * eps)),),
            "no root": (lambda eps: math.ceil(0.5 / eps),),
            "corners instead of pieces": (lambda eps: math.ceil(1 / math.sqrt(2 * eps)) - 1,),
            "a number": (8,),
        },
    ),
    "1.4": Attack(
        right=[
            (lambda eps: [1 / eps - 1, 1 / eps - 1],),
            (lambda eps: (1 / eps, 1 / eps),),
            # b_1 counts by its absolute value
            (lambda eps: torch.tensor([1 / eps, -1 / eps]),),
            # a slope below 1
            (lambda eps: [100 / eps * (1 - eps / 10), 100 / eps],),
        ],
        wrong={
            "the answer that stands there": (lambda eps: [1.0, 1.0],),
            "the same for every error": (same_for_every_error,),
            "a parabola": (lambda eps: [1 / eps, 0.0],),
            "no numerator": (lambda eps: [0.0, 1 / eps],),
            "too small": (lambda eps: [1 / eps - 1.5, 1 / eps - 1.5],),
            "the square": (lambda eps: [eps**-0.5, eps**-0.5],),
            "too steep": (lambda eps: [2 / eps, 1 / eps],),
            "a function of x": (lambda eps: torch.sign(torch.linspace(-1, 1, 201)),),
        },
        harmless=("one more", "twice", "another shape"),
    ),
}
