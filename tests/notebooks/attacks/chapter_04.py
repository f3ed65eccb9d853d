"""Chapter 4: Padé approximants, the limits of ratios, their slopes, and the series of Mish."""

import math
from fractions import Fraction

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev
from torch.nn import functional as F

from attacks import Attack


def pade_of_exp() -> tuple[list[float], list[float]]:
    """Degrees (2, 2), by the linear system instead of by hand."""
    c = [1 / math.factorial(k) for k in range(5)]
    b = np.linalg.solve([[c[2], c[1]], [c[3], c[2]]], [-c[3], -c[4]])
    a = [c[0], c[1] + b[0] * c[0], c[2] + b[0] * c[1] + b[1] * c[0]]
    return a, b.tolist()


def chebyshev(x):
    """T_9 on [-3, 3], for which the ratio gets poles on the interval."""
    return torch.from_numpy(Chebyshev.basis(9, domain=[-3, 3])(x.numpy()))


def sum_of_powers(x):
    return 3 + x - 0.1 * x**7 + 0.01 * x**8


def ninth_power(x):
    return (x / 3) ** 9


def quotient(a, b):
    return a[5] / b[3], a[5] / b[3]


def measured_far_out(a, b):
    """The slopes from values at ±1e5 and ±2e5."""
    slopes = []
    for far in (-1e5, 1e5):
        x = torch.tensor([far, 2 * far], dtype=torch.float64)
        P = sum(v * x**k for k, v in enumerate(a))
        Q = 1 + sum(v * x ** (k + 1) for k, v in enumerate(b))
        slopes.append(((P / Q).diff() / far).item())
    return slopes[0], slopes[1]


def mish_radius_by_pade() -> float:
    """The nearest zero of Q for degrees (7, 6), from values on a small circle."""
    angle = 2 * np.pi * np.arange(256) / 256
    z = 1.5 * np.exp(1j * angle)
    u = 1 + np.exp(z)
    c = np.fft.fft(z * (u**2 - 1) / (u**2 + 1)).real / 256 / 1.5 ** np.arange(256)
    system = [[c[k - j] for j in range(1, 7)] for k in range(8, 14)]
    b = np.linalg.solve(system, -c[8:14])
    return float(min(abs(np.roots([*b[::-1], 1.0]))))


ATTACKS = {
    "4.1": Attack(
        right=[
            ([1, 1 / 2, 1 / 12], [-1 / 2, 1 / 12]),
            pade_of_exp(),
            ([1, Fraction(1, 2), Fraction(1, 12)], [-Fraction(1, 2), Fraction(1, 12)]),
            (np.array([1, Fraction(1, 2), Fraction(1, 12)]), np.array([-1 / 2, 1 / 12])),
            (torch.tensor([1, 0.5, 0.0833]), torch.tensor([-0.5, 0.0833])),
        ],
        wrong={
            "degrees (1, 1)": ([1.0, 0.5, 0.0], [-0.5, 0.0]),
            "the Taylor polynomial": ([1.0, 1.0, 0.5], [0.0, 0.0]),
            "only the equation of k = 3": ([1.0, 1.0, 1 / 3], [0.0, -1 / 6]),
            "P and Q exchanged": ([1.0, -0.5, 1 / 12], [0.5, 1 / 12]),
            "b of degrees (2, 2), a of degrees (1, 1)": ([1.0, 0.5, 0.0], [-0.5, 1 / 12]),
            "squares instead of a system": ([1.0, 0.5, 1 / 16], [-0.5, 1 / 16]),
            "with imaginary parts": ([1, 0.5 + 3j, 1 / 12], [-0.5, 1 / 12]),
            "all coefficients in one": ([1.0, 0.5, 1 / 12, -0.5, 1 / 12], []),
        },
    ),
    "4.2": Attack(
        right=[
            (ninth_power,),
            (sum_of_powers,),
            (lambda x: -7 * x**8,),
            (lambda x: 1e-14 * x**9,),
            (lambda x: x**6,),
        ],
        wrong={
            "the given answer": (lambda x: torch.cos(2 * x),),
            "a power that both have": (lambda x: x**5,),
            "such a power, in float32": (lambda x: (x.float() ** 5).double(),),
            "a wave": (lambda x: torch.sin(2 * x),),
            "a wave that neither follows": (lambda x: torch.sin(20 * x),),
            "swish": (F.silu,),
            "a kink": (torch.relu,),
            "a pole on the interval": (lambda x: torch.cos(3 * x),),
            "another such pole": (lambda x: torch.sin(3.5 * x),),
            "such a pole, for a polynomial": (chebyshev,),
            "noise": (torch.randn_like,),
            "zero at the points": (lambda x: torch.zeros_like(x),),
            "too small a part": (lambda x: x + 1e-6 * ninth_power(x),),
            "a step": (lambda x: (x > 0).double(),),
            "not a function": (9,),
        },
        # a multiple of such a function is one, and so is its sum with a constant
        harmless=("the other sign", "one more", "one less", "twice"),
    ),
    "4.3": Attack(
        right=[
            (quotient,),
            (measured_far_out,),
            (lambda a, b: [float(a[5] / b[3])] * 2,),
            (lambda a, b: torch.stack(quotient(a, b)),),
            (lambda a, b: np.array([float(slope) for slope in quotient(a, b)]),),
        ],
        wrong={
            "ReLU's": (lambda a, b: (0.0, 1.0),),
            "swish's own fit": (lambda a, b: (0.5, 0.5),),
            "signs of x^5": (lambda a, b: (-a[5] / b[3], a[5] / b[3]),),
            "one index less": (lambda a, b: (a[4] / b[3], a[4] / b[3]),),
            "another denominator": (lambda a, b: (a[5] / b[2], a[5] / b[2]),),
            "the numerator alone": (lambda a, b: (a[5], a[5]),),
            "the quotient upside down": (lambda a, b: (b[3] / a[5], b[3] / a[5]),),
            "absolute values": (lambda a, b: (abs(a[5] / b[3]), abs(a[5] / b[3])),),
            "the absolute value below": (lambda a, b: (a[5] / abs(b[3]),) * 2,),
            "the two first cases": (lambda a, b: (0.4, 0.4) if a[5] == 2 else (2.4, 2.4),),
            "only one slope": (lambda a, b: a[5] / b[3],),
        },
    ),
    "4.4": Attack(
        right=[
            (math.hypot(math.log(2) / 2, 3 * math.pi / 4),),
            (mish_radius_by_pade(),),
            (2.38,),
            (2.382,),
            (abs(np.log(-1 + 1j)),),
        ],
        wrong={
            "swish's": (math.pi,),
            "the imaginary part alone": (3 * math.pi / 4,),
            "the real part alone": (math.log(2) / 2,),
            "u instead of x": (math.sqrt(2),),
            "tanh's": (math.pi / 2,),
            "a little less": (2.372,),
            "a hundredth more": (2.39,),
            "with an imaginary part": (2.38 + 9j,),
            "ln 2 for ln of its root": (math.hypot(math.log(2), 3 * math.pi / 4),),
            "the sum of the parts": (math.log(2) / 2 + 3 * math.pi / 4,),
            "the pole of the other branch": (math.hypot(math.log(2) / 2, 5 * math.pi / 4),),
        },
    ),
}
