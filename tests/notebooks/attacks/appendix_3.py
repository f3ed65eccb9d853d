"""Answers to the exercise of appendix A3."""

import math

import numpy as np
import torch

import katlib
from attacks import Attack


def with_rule(inside, outside):
    """A gain by NumPy's rule for e^(-t^2), with F taken at inside * t."""

    def gain(f):
        t, v = map(torch.from_numpy, np.polynomial.hermite.hermgauss(100))
        return outside / (v @ f(inside * t) ** 2).item()

    return gain


def by_normalised_weights(f):
    t, v = map(torch.from_numpy, np.polynomial.hermite.hermgauss(120))
    return 1 / (v @ f(2**0.5 * t) ** 2 / v.sum())


PI, ROOT = math.pi, math.sqrt(2)

ATTACKS = {
    "A3.1": Attack(
        right=[(with_rule(ROOT, math.sqrt(PI)),), (by_normalised_weights,), (katlib.gain,)],
        wrong={
            "neither factor": (with_rule(1, 1),),
            "no change of variable": (with_rule(1, math.sqrt(PI)),),
            "no root of pi": (with_rule(ROOT, 1),),
            "the wrong normalisation": (with_rule(ROOT, math.sqrt(2 * PI)),),
            "the other way round": (with_rule(1 / ROOT, math.sqrt(PI)),),
            "2 t": (with_rule(2, math.sqrt(PI)),),
            "right for homogeneous functions": (with_rule(1, math.sqrt(PI) / 2),),
            "pi without its root": (with_rule(ROOT, PI),),
            "F not squared": (lambda f: 1 / katlib.gain(lambda z: f(z).abs().sqrt()),),
        },
    ),
}
