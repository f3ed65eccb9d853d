"""Chapter 5: where versions A and B differ, where all agree, and their kinks."""

import torch

from attacks import Attack


def jump(a, b):
    return -2 * a[0] * b[0].abs()


def one_sided_slopes(a, b):
    """The jump by the quotient rule on each side, for Q' = |b_1| and -|b_1|."""
    right = a[1] - a[0] * abs(b[0])
    left = a[1] + a[0] * abs(b[0])
    return float(right - left)


ATTACKS = {
    "5.1": Attack(
        right=[
            ([1.0, -0.5, 0.0, 0.0],),
            ([0.0, 0.9, -0.4, 0.0],),
            (torch.tensor([0.0, 0.0, -1.0, -0.4]),),
            ([-1, 0.5, 0, 0],),
            # cancels only outside of the interval, at x = 4
            ([1.0, -0.25, 0.0, 0.0],),
        ],
        wrong={
            "the given answer": ([0.5, 0.5, 0.0, 0.0],),
            "nothing cancels": ([1.0, 0.0, 1.0, 0.0],),
            "cancels at x = 1, too near to 0": ([1.0, -1.0, 0.0, 0.0],),
            "cancels far outside of the interval": ([1.0, -0.1, 0.0, 0.0],),
            "only one term": ([-1.0, 0.0, 0.0, 0.0],),
            "larger than 1": ([2.0, -1.0, 0.0, 0.0],),
            "a little larger than 1": ([1 + 1e-8, -0.5, 0.0, 0.0],),
            "three coefficients": ([1.0, -0.5, 0.0],),
            "not a number beside it": ([1.0, -0.5, 0.0, float("nan")],),
        },
        # absolute values do not see the sign of all of b
        harmless=("the other sign",),
    ),
    "5.2": Attack(
        right=[
            ([0, 0.3, 0, 0.1], [0, -0.3, 0, -0.1]),
            ([0, 0.3, 0, 0.1], [0.3, 0, 0.1, 0]),
            ([0, 7, 0, 0.01], [-0.2, 0, -4, 0]),
            (torch.tensor([0, 1.0, 0, 1.0]), torch.tensor([0, -1.0, 0, -1.0])),
        ],
        wrong={
            "the given answer": ([0.3, 0.1, 0, 0], [0.3, 0.1, 0, 0]),
            "exchanged": ([0, -0.3, 0, -0.1], [0, 0.3, 0, 0.1]),
            "twice the first": ([0, 0.3, 0, 0.1], [0, 0.3, 0, 0.1]),
            "odd powers in the first": ([0.3, 0, 0.1, 0], [0, -0.3, 0, -0.1]),
            "one sign in the first": ([0, 0.3, 0, -0.1], [0, -0.3, 0, -0.1]),
            "odd powers of two signs": ([0, 0.3, 0, 0.1], [0.3, 0, -0.1, 0]),
            "an odd and an even power": ([0, 0.3, 0, 0.1], [-0.3, -0.1, 0, 0]),
            "one entry": ([0, 0.3, 0, 0], [0, -0.3, 0, -0.1]),
            "three entries": ([0, 0.3, 0, 0.1], [0.1, 0, 0.3, 1e-3]),
            "entries that are nearly 0": ([1e-12, 1e-12, 0, 0], [0, -0.3, 0, -0.1]),
            "a first entry that drowns": ([0, 0.3, 0, 0.1], [0.01, 1e11, 0, 0]),
            "the same, other sign": ([0, 0.3, 0, 0.1], [0.01, -1e11, 0, 0]),
            "a nearly 0 entry beside one": ([0, 0.3, 1e-9, 0], [0, -0.3, 0, -0.1]),
        },
        # a multiple of such a set is one
        harmless=("twice",),
    ),
    "5.3": Attack(
        right=[(jump,), (one_sided_slopes,), (lambda a, b: [-2 * a[0] * b[0].abs()][0].item(),)],
        wrong={
            "the given answer": (lambda a, b: 0.0,),
            "without the factor 2": (lambda a, b: -a[0] * b[0].abs(),),
            "without the sign": (lambda a, b: 2 * a[0] * b[0].abs(),),
            "without a_0": (lambda a, b: -2 * b[0].abs(),),
            "without b_1": (lambda a, b: -2 * a[0],),
            "without the absolute value": (lambda a, b: -2 * a[0] * b[0],),
            "absolute value of all": (lambda a, b: -2 * (a[0] * b[0]).abs(),),
            "a_1 instead of a_0": (lambda a, b: -2 * a[1] * b[0].abs(),),
            "b_2 instead of b_1": (lambda a, b: -2 * a[0] * b[1].abs(),),
            "the slope on the right": (lambda a, b: a[1] - a[0] * b[0].abs(),),
            "not a function": (-2.0,),
        },
    ),
    "5.4": Attack(
        right=[
            ([4, -4, 1, 0],),
            ([0, 4, -4, 1],),
            ([-1.0, 1.0, -0.25, 0.0],),
            ([4e-4, -4e-4, 1e-4, 0],),
            # x (x - 2)^3, which crosses 0 without a slope
            (torch.tensor([-8.0, 12.0, -6.0, 1.0]),),
        ],
        wrong={
            "the given answer": ([1.0, -0.5, 0.0, 0.0],),
            "all zero": ([0, 0, 0, 0],),
            "a double zero at -2": ([4, 4, 1, 0],),
            "a double zero at 1": ([1, -2, 1, 0],),
            "slope 0, but not 0": ([4, -1, 0, 0],),
            "without the factor x": ([4, -4, 1],),
            "a constant term instead": ([-4, 1, 0, 0],),
            "a double zero at 0": ([0, 2, -1, 0],),
        },
        # a multiple of such a sum is one
        harmless=("the other sign", "twice"),
    ),
}
