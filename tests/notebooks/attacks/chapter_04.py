"""Chapter 4: which kind to take, the limits of ratios, their slopes, and the series of Mish."""

import math

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev
from torch.nn import functional as F

from attacks import Attack


def fits(f, rounds=5, end=3.0):
    """The two largest errors on [-end, end], and the zeros of the ratio's Q."""
    x = np.linspace(-end, end, 601)
    y = f(torch.from_numpy(x)).numpy()
    polynomial = np.polynomial.Polynomial.fit(x, y, 9)(x)
    a, b, Q = np.zeros(6), np.zeros(4), np.ones_like(x)
    powers = np.vander(x, 6, increasing=True)
    for _ in range(rounds):
        system = np.hstack([powers, -y[:, None] * powers[:, 1:5]]) / Q[:, None]
        found = np.linalg.lstsq(system, y / Q)[0]
        a, b = found[:6], found[6:]
        Q = 1 + powers[:, 1:5] @ b
    errors = (np.abs(values - y).max() for values in (polynomial, powers @ a / Q))
    return *errors, np.roots([*b[::-1], 1.0])


def judging(count, rounds=5, end=3.0):
    """A judge that counts the zeros z of Q for which count(z)."""

    def judge(f):
        polynomial, of_ratio, zeros = fits(f, rounds, end)
        return polynomial / of_ratio, sum(map(count, zeros))

    return judge


def is_within_reach(zero):
    return abs(zero.imag) < 1e-6 and abs(zero.real) <= 10


def upside_down(f):
    factor, count = judging(is_within_reach)(f)
    return 1 / factor, count


def chebyshev(x):
    """T_9 on [-3, 3], for which the ratio gets poles on the interval."""
    return torch.from_numpy(Chebyshev.basis(9, domain=[-3, 3])(x.numpy()))


def sum_of_powers(x):
    return 3 + x - 0.1 * x**7 + 0.01 * x**8


def ninth_power(x):
    return (x / 3) ** 9


def quotient(a, b):
    return a[5] / b[3], a[5] / b[3]


def measured_far_out(a, b, distance=1e5):
    """The slopes from values at ± one and two distances."""
    slopes = []
    for far in (-distance, distance):
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
            (judging(is_within_reach),),
            (judging(is_within_reach, rounds=8),),
            (lambda f: list(judging(is_within_reach)(f)),),
            (lambda f: np.array(judging(is_within_reach)(f)),),
        ],
        wrong={
            "the given answer": (lambda f: (1.0, 0),),
            "zeros on [-3, 3]": (judging(lambda z: is_within_reach(z) and abs(z.real) <= 3),),
            "positive zeros": (judging(lambda z: is_within_reach(z) and z.real > 0),),
            "zeros that are not real": (judging(lambda z: abs(z) <= 10),),
            "all zeros": (judging(lambda z: True),),
            "no zeros": (judging(lambda z: False),),
            "whether there are any": (lambda f: (judging(is_within_reach)(f)[0], 1),),
            "the factor upside down": (upside_down,),
            "one round": (judging(is_within_reach, rounds=1),),
            "fitted on [-10, 10]": (judging(is_within_reach, end=10.0),),
            "only the factor": (lambda f: judging(is_within_reach)(f)[0],),
            "the errors": (lambda f: fits(f)[:2],),
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
            "measured at 1e5": (measured_far_out,),
            "measured at 1e20": (lambda a, b: measured_far_out(a, b, 1e20),),
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
            "a little more": (2.384,),
            "a hundredth more": (2.39,),
            "with an imaginary part": (2.38 + 9j,),
            "ln 2 for ln of its root": (math.hypot(math.log(2), 3 * math.pi / 4),),
            "the sum of the parts": (math.log(2) / 2 + 3 * math.pi / 4,),
            "the pole of the other branch": (math.hypot(math.log(2) / 2, 5 * math.pi / 4),),
        },
    ),
}
