"""Answers to the exercise of appendix A5."""

import torch
from torch.nn import functional as F

from attacks import Attack, changed
from katlib.spline import bspline_basis


def local_basis(x, G, K, move=0.0, part=1.0):
    position = (x + 1) * (G / 2)
    first = position.floor().clamp(0, G - 1)
    u = (position - first)[..., None] + move
    values = torch.ones_like(u)
    for d in range(1, K + 1):
        right = part * values * (u + (d - 1) - torch.arange(d)) / d
        values = F.pad(values - right, (0, 1)) + F.pad(right, (1, 0))
    return values, first.long()


def picked_out(x, G, K):
    """The right ones of all functions."""
    first = ((x + 1) * (G / 2)).floor().long()
    basis = bspline_basis(x, torch.arange(-K, G + K + 1) * (2 / G) - 1, K)
    return basis.gather(-1, first[..., None] + torch.arange(K + 1)), first


def with_first(change):
    """The right values, and the number of the first function changed."""

    def other(x, G, K):
        values, first = local_basis(x, G, K)
        return values, change(first)

    return other


def turned_around(x, G, K):
    values, first = local_basis(x, G, K)
    return values.flip(-1), first


ATTACKS = {
    "A5.1": Attack(
        right=[(local_basis,), (picked_out,)],
        wrong={
            "zeros": (lambda x, G, K: (torch.zeros(*x.shape, K + 1), torch.zeros(x.shape).long()),),
            "always the first interval": (with_first(torch.zeros_like),),
            "one interval further": (with_first(lambda first: first + 1),),
            "below zero": (with_first(lambda first: first - 9),),
            "half of an interval": (with_first(lambda first: first + 0.5),),
            "the position is wrong": (lambda x, G, K: local_basis(x, G, K, move=0.1),),
            "nothing is handed on": (lambda x, G, K: local_basis(x, G, K, part=0.0),),
            "the order turned around": (turned_around,),
            "not normalised": (changed(local_basis, lambda item: 2 * item),),
            "one function": (lambda x, G, K: local_basis(x, G, 0),),
            "the values alone": (lambda x, G, K: local_basis(x, G, K)[0],),
            "G = 5 only": (lambda x, G, K: local_basis(x, 5, K),),
        },
    ),
}
