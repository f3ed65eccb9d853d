"""Answers to the exercises of chapter 1."""

import math

import torch

from attacks import Attack


def corner(x):
    return torch.relu(x - 0.3)


def rises_and_levels_off(x):
    return torch.tanh(3 * x)


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
        right=[
            (lambda eps: math.ceil(1 / math.sqrt(2 * eps)),),
            (lambda eps: torch.tensor(0.5 / eps).sqrt().ceil(),),
            (lambda eps: math.ceil(eps**-0.5 / 2**0.5),),
            (lambda eps: next(n for n in range(1, 10**6) if 0.5 / n**2 <= eps),),
        ],
        wrong={
            "the answer that stands there": (lambda eps: 1,),
            "not lowered": (lambda eps: math.ceil(1 / math.sqrt(eps)),),
            "lowered entirely": (lambda eps: math.ceil(math.sqrt(0.25 / eps)),),
            "rounded down": (lambda eps: math.floor(1 / math.sqrt(2 * eps)),),
            "rounded down, and one more": (lambda eps: math.floor(1 / math.sqrt(2 * eps)) + 1,),
            "two at least": (lambda eps: max(2, math.ceil(1 / math.sqrt(2 * eps))),),
            "a rounded factor": (lambda eps: math.ceil(0.7072 / math.sqrt(eps)),),
            "not rounded": (lambda eps: 1 / math.sqrt(2 * eps),),
            "an interval of length 1": (lambda eps: math.ceil(0.5 / math.sqrt(2 * eps)),),
            "no root": (lambda eps: math.ceil(0.5 / eps),),
            "corners instead of pieces": (lambda eps: math.ceil(1 / math.sqrt(2 * eps)) - 1,),
            "a number": (8,),
        },
    ),
    "1.3": Attack(
        right=[
            (lambda eps: 1 / eps - 1,),
            (lambda eps: (1 - eps) / eps,),
            (lambda eps: torch.tensor((1 - eps) / eps, dtype=torch.float64),),
        ],
        wrong={
            "the answer that stands there": (lambda eps: 1.0,),
            "large enough for every error": (lambda eps: 9999.0,),
            "not the smallest": (lambda eps: 1 / eps,),
            "a root": (lambda eps: eps**-0.5,),
            "the error itself": (lambda eps: eps,),
            "twice the error is allowed": (lambda eps: 0.5 / eps - 1,),
            "a list": (lambda eps: [1 / eps - 1, 1 / eps - 1],),
            "a number": (9.0,),
        },
    ),
    "1.4": Attack(
        right=[
            (corner, "ReLU", "learned"),
            (corner, "ReLU", "tanh"),
            (rises_and_levels_off, "learned", "ReLU"),
        ],
        wrong={
            "the answer that stands there": (lambda x: 0 * x, "tanh", "GELU"),
            "the other way round": (corner, "learned", "ReLU"),
            "both fail": (corner, "GELU", "tanh"),
            "the same twice": (corner, "ReLU", "ReLU"),
            "no such function": (corner, "ReLU", "sigmoid"),
            "the chapter's bump": (lambda x: 2 - torch.exp(-8 * x**2), "tanh", "ReLU"),
            "the chapter's corner": (lambda x: 3 * x.abs(), "ReLU", "tanh"),
            "the chapter's wave": (lambda x: torch.sin(8 * x), "tanh", "ReLU"),
            "nearly the chapter's wave": (lambda x: torch.sin(9 * x), "learned", "ReLU"),
            "nearly constant": (lambda x: 1 + 1e-6 * corner(x), "ReLU", "tanh"),
            "a number for each input but one": (lambda x: corner(x)[1:], "ReLU", "tanh"),
        },
        # a target that is moved or scaled is as good
        harmless=("the other sign", "one more", "one less", "twice"),
    ),
}
