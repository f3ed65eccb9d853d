"""Answers to the exercises of appendix A2."""

import torch

from attacks import Attack


def left(x):
    return x**2 / 2


def middle(x):
    return -(x**2) + 3 * x - 1.5


def right(x):
    return (3 - x) ** 2 / 2


def hat(s, h):
    return [s, s + h, s + 2 * h], [1 / h, -2 / h, 1 / h]


ATTACKS = {
    "A2.1": Attack(
        right=[
            (left, middle, right),
            (
                lambda x: 0.5 * x * x,
                lambda x: 0.75 - (x - 1.5) ** 2,
                lambda x: 4.5 - 3 * x + x**2 / 2,
            ),
        ],
        wrong={
            "no halves": (lambda x: x**2, lambda x: 1, lambda x: (3 - x) ** 2),
            "the middle of hats": (left, lambda x: x * (2 - x) / 2, right),
            "the other part of the middle": (left, lambda x: (3 - x) * (x - 1) / 2, right),
            "the middle constant": (left, lambda x: 0.75, right),
            "the last not mirrored": (left, middle, left),
            "hats": (lambda x: x, lambda x: 2 - x, lambda x: 0 * x),
        },
    ),
    "A2.2": Attack(
        right=[
            (hat,),
            # in another order
            (lambda s, h: ([s + 2 * h, s, s + h], [1 / h, 1 / h, -2 / h]),),
            (lambda s, h: (torch.tensor([s, s + h, s + 2 * h]), torch.tensor([1, -2, 1.0]) / h),),
        ],
        wrong={
            "no fall": (lambda s, h: ([s, s + h, s + 2 * h], [1.0, -1.0, 0.0]),),
            "no end": (lambda s, h: ([s, s + h, s + 2 * h], [1 / h, -2 / h, 0.0]),),
            "h left out": (lambda s, h: ([s, s + h, s + 2 * h], [1.0, -2.0, 1.0]),),
            "s left out": (lambda s, h: ([0.0, h, 2 * h], [1 / h, -2 / h, 1 / h]),),
            "the shifts without h": (lambda s, h: ([s, s + 1, s + 2], [1 / h, -2 / h, 1 / h]),),
            "weights and shifts exchanged": (lambda s, h: hat(s, h)[::-1],),
            "two ReLUs": (lambda s, h: ([s, s + h], [1 / h, -2 / h]),),
        },
    ),
    "A2.3": Attack(
        right=[
            (lambda t: (t[1:-3] + t[2:-2] + t[3:-1]) / 3,),
            (lambda t: t.unfold(0, 5, 1)[:, 1:4].mean(1)[: len(t) - 4],),
        ],
        wrong={
            "the middle of the bump": (lambda t: (t[:-4] + t[4:]) / 2,),
            "the middle knot": (lambda t: t[2:-2],),
            "the mean of all five": (lambda t: t.unfold(0, 5, 1).mean(1)[: len(t) - 4],),
            "the outer two of the three": (lambda t: (t[1:-3] + t[3:-1]) / 2,),
            "one place further": (lambda t: (t[2:-2] + t[3:-1] + t[4:]) / 3,),
        },
    ),
}
