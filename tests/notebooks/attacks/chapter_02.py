"""Answers to the exercises of chapter 2."""

import math

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


def missing_edge(formula):
    """An outer edge that reads a, s1 and s2 off the inner ones, and then computes a formula."""

    def outer(u, of_x, of_y):
        s1, s2 = of_x(0.0), of_y(0.0)
        return formula(u, of_y(1.0) - s2, s1, s2)

    return outer


def by_slope(u, of_x, of_y):
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(of_x(zero), zero)
    return torch.exp((u - of_x(1.0) - of_y(0.0)) * math.pi / slope)


SUM_AND_DIFFERENCE = [[identity, identity], [identity, minus]]

ATTACKS = {
    "2.1": Attack(
        right=[
            ([[4, 5, 6, 7], [7, 8], []],),
            (([7, 5, 4, 6], (8, 7), ()),),
            ([torch.tensor([4.0, 5.0, 6.0, 7.0]), torch.tensor([7, 8]), torch.tensor([])],),
            ([{4, 5, 6, 7}, {7, 8}, set()],),
        ],
        wrong={
            "how many": ([4, 2, 0],),
            "falsehoods": ([[4, 5, 6, 7], [7, 8], False],),
            "all of them": ([list(range(1, 9))] * 3,),
            "one that is not reached": ([[4, 5, 6, 7, 8], [7, 8], []],),
            "one forgotten": ([[4, 5, 6], [7, 8], []],),
            "on the grid only": ([[4, 5, 6, 7], [], []],),
            "the last bump forgotten": ([[4, 5, 6, 7], [7], []],),
            "the last bump everywhere": ([[4, 5, 6, 7], [7, 8], [8]],),
            "hats": ([[5, 6], [], []],),
            "counted from zero": ([[3, 4, 5, 6], [6, 7], []],),
            "one twice": ([[4, 5, 6, 7, 7], [7, 8], []],),
            "one list": ([4, 5, 6, 7],),
            "a set of words": ([{"four", 5, 6, 7}, {7, 8}, set()],),
            "a set with one forgotten": ([{4, 5, 6, 7}, {8}, set()],),
        },
    ),
    "2.2": Attack(
        right=[
            (SUM_AND_DIFFERENCE, [[half, half_distance]]),
            # y + relu(x - y)
            ([[nothing, identity], [identity, minus]], [[identity, torch.relu]]),
            # x + relu(y - x)
            (((identity, nothing), (minus, identity)), ((identity, torch.relu),)),
            # functions of a number, without torch
            ([[nothing, identity], [identity, minus]], [[identity, lambda t: max(t, 0)]]),
            (SUM_AND_DIFFERENCE, [[half, lambda t: math.fabs(t) / 2]]),
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
            # x + softplus(y - x), off by less than 0.01
            "the logarithm of a sum": (
                [[identity, nothing], [minus, identity]],
                [[identity, lambda t: (1 + (99 * t).exp()).log() / 99]],
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
    "2.3": Attack(
        right=[
            (missing_edge(lambda u, a, s1, s2: torch.exp((u - s1 - s2) / a)),),
            # the scale from the sine, and a shift from a zero of the sine
            (lambda u, p, q: math.exp((u - p(1.0) - q(0.0)) / (p(0.5) - p(0.0))),),
            (by_slope,),
            (lambda u, p, q: by_slope(u, p, q).reshape(1),),
        ],
        wrong={
            "nothing undone": (lambda u, p, q: math.exp(u),),
            "no scale": (missing_edge(lambda u, a, s1, s2: torch.exp(u - s1 - s2)),),
            "no shift": (missing_edge(lambda u, a, s1, s2: torch.exp(u / a)),),
            "the first shift only": (missing_edge(lambda u, a, s1, s2: torch.exp((u - s1) / a)),),
            "the second shift only": (missing_edge(lambda u, a, s1, s2: torch.exp((u - s2) / a)),),
            "in the wrong order": (missing_edge(lambda u, a, s1, s2: torch.exp(u / a - s1 - s2)),),
            "scaled once more": (missing_edge(lambda u, a, s1, s2: torch.exp((u - s1 - s2) * a)),),
            "the sign of a lost": (
                missing_edge(lambda u, a, s1, s2: torch.exp((u - s1 - s2) / abs(a))),
            ),
            "outside of the exponential": (
                missing_edge(lambda u, a, s1, s2: (torch.exp(u) - s1 - s2) / a),
            ),
            "the scale for one network": (
                missing_edge(lambda u, a, s1, s2: torch.exp((u - s1 - s2) / 3)),
            ),
            "q(1) taken for the scale": (
                lambda u, p, q: math.exp((u - p(0.0) - q(0.0)) / (q(1.0) or 1)),
            ),
            "a list": (lambda u, p, q: [by_slope(u, p, q), 0.0],),
            "values of its own": (lambda u, p, q: torch.linspace(-1, 2, 12).exp(),),
        },
        # a tensor with one element is a number
        harmless=("another shape",),
    ),
}
