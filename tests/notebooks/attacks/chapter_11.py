"""Answers to the exercises of chapter 11."""

import copy

import torch

import katlib
from attacks import Attack


def parameters(C, L):
    attention, mlp = 4 * C * C + 4 * C, 8 * C * C + 5 * C
    block = attention + mlp + 76 + 4 * C
    return 768 * C + C + C + 197 * C + L * block + 2 * C + 1000 * C + 1000


def with_extra(extra):
    """The right number and something more, a function of C and L."""
    return lambda C, L: parameters(C, L) + extra(C, L)


def from_mlp(mlp, init=("identity", "gelu"), copied=("fc1", "fc2"), biases=("fc1", "fc2")):
    kat = katlib.GRKANMlp(mlp.fc1.in_features, mlp.fc1.out_features, init=init)
    for name in copied:
        ours, theirs = getattr(kat, name), getattr(mlp, name)
        ours.weight.data.copy_(theirs.weight)
        if name in biases:
            ours.bias.data.copy_(theirs.bias)
    return kat


def from_mlp_by_modules(mlp):
    """Takes the linear maps themselves, and one group."""
    sizes = mlp.fc1.in_features, mlp.fc1.out_features
    kat = katlib.GRKANMlp(*sizes, groups=1, init=("identity", "gelu"))
    kat.fc1, kat.fc2 = copy.deepcopy(mlp.fc1), copy.deepcopy(mlp.fc2)
    return kat


def with_other_flag(**changes):
    return lambda mlp: from_mlp(mlp, **changes)


def weights_turned(mlp):
    kat = from_mlp(mlp)
    kat.fc1.weight.data.copy_(mlp.fc2.weight.T)
    return kat


def fair(C, h, m, n):
    return h + (2 * m + 2 * n + 3) * (C + h) / (4 * C)


def fair_by_halves(C, h, m, n):
    flops = 4 * C * h + (2 * (m + n) + 3) * h + (2 * (m + n) + 3) * C
    return torch.tensor(flops / (4 * C), dtype=torch.float64)


ATTACKS = {
    "11.1": Attack(
        right=[
            (parameters,),
            (lambda C, L: torch.tensor(12 * L * C**2 + 13 * L * C + 76 * L + 1969 * C + 1000),),
        ],
        wrong={
            "a ViT": (with_extra(lambda C, L: -76 * L),),
            "a numerator for each group": (with_extra(lambda C, L: 2 * 7 * 6 * L),),
            "one function": (with_extra(lambda C, L: -38 * L),),
            "no class token": (with_extra(lambda C, L: -C),),
            "196 positions": (with_extra(lambda C, L: -C),),
            "no norms in blocks": (with_extra(lambda C, L: -4 * C * L),),
            "norms without biases": (with_extra(lambda C, L: -2 * C * L - C),),
            "no last norm": (with_extra(lambda C, L: -2 * C),),
            "no biases in attention": (with_extra(lambda C, L: -4 * C * L),),
            "no biases in the MLP": (with_extra(lambda C, L: -5 * C * L),),
            "no head": (with_extra(lambda C, L: -1000 * C - 1000),),
            "no biases of the head": (with_extra(lambda C, L: -1000),),
            "grey images": (with_extra(lambda C, L: -512 * C),),
            "KAT-T whatever is asked": (lambda C, L: parameters(192, 12),),
            "the wrong answer that stands there": (lambda C, L: L * 12 * C**2,),
        },
    ),
    "11.2": Attack(
        right=[(from_mlp,), (from_mlp_by_modules,), (lambda mlp: from_mlp(mlp).double().float(),)],
        wrong={
            "nothing copied": (with_other_flag(copied=()),),
            "no biases": (with_other_flag(biases=()),),
            "the first biases forgotten": (with_other_flag(biases=("fc2",)),),
            "the second biases forgotten": (with_other_flag(biases=("fc1",)),),
            "fc1 alone": (with_other_flag(copied=("fc1",)),),
            "fc2 alone": (with_other_flag(copied=("fc2",)),),
            "swish": (with_other_flag(init=("identity", "swish")),),
            "the released GELU": (with_other_flag(init=("identity", "released-gelu")),),
            "GELU twice": (with_other_flag(init=("gelu", "gelu")),),
            "the identity twice": (with_other_flag(init=("identity", "identity")),),
            "the functions exchanged": (with_other_flag(init=("gelu", "identity")),),
            "weights of the other map": (weights_turned,),
            "the MLP itself": (lambda mlp: mlp,),
            "a linear map": (lambda mlp: mlp.fc1,),
        },
    ),
    "11.3": Attack(
        right=[(fair,), (fair_by_halves,)],
        wrong={
            "equal hidden channels": (lambda C, h, m, n: h,),
            "one function, on C": (lambda C, h, m, n: h + (2 * m + 2 * n + 3) / 4,),
            "one function, on h": (lambda C, h, m, n: h + (2 * m + 2 * n + 3) * h / (4 * C),),
            "always 21": (lambda C, h, m, n: h + 21 * (C + h) / (4 * C),),
            "h = 4 C": (lambda C, h, m, n: h + (2 * m + 2 * n + 3) * 5 / 4,),
            "one FLOP a weight": (lambda C, h, m, n: h + (2 * m + 2 * n + 3) * (C + h) / (2 * C),),
            "one weight a hidden channel": (
                lambda C, h, m, n: h + (2 * m + 2 * n + 3) * (C + h) / (2 * C),
            ),
            "the division forgotten": (
                lambda C, h, m, n: h + (2 * m + 2 * n + 2) * (C + h) / 4 / C,
            ),
            "rounded": (lambda C, h, m, n: round(fair(C, h, m, n)),),
            "the extra ones alone": (lambda C, h, m, n: fair(C, h, m, n) - h,),
            "fewer instead of more": (lambda C, h, m, n: 2 * h - fair(C, h, m, n),),
        },
    ),
}
