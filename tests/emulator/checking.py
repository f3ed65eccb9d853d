"""What the tests of rational.cu on the emulator share: one run, compared with the oracle."""

from oracle import errors

import katlib.cuda
from katlib.cuda.emulator import emulation

# rounding errors in units of the absolute terms: more than any of the tested shapes needs
LIMIT = 8
# the combinations of input_gradient and coefficient_gradients that compute something
ASKED = {"both": (True, True), "input": (True, False), "coefficients": (False, True)}


def run(g, x, a, b, shape=None, asked="both", **device):
    """y, dx, da and db on an emulated device; x is (rows, G, span) unless there is a `shape`."""
    shape = shape or x.shape
    with emulation(**device):
        y = katlib.cuda.forward(x, a, b, shape)
        return y, *katlib.cuda.backward(g, x, a, b, shape, *ASKED[asked])


def check(g, x, a, b, limit=LIMIT, **options):
    """Runs forward and backward, and compares them with the oracle."""
    worst = errors(run(g, x, a, b, **options), g, x, a, b)
    assert max(worst.values()) < limit, worst
