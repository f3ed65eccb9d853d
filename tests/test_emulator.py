"""rational.cu, unchanged, on the CPU: every type, hostile shapes, and the proof that these checks would notice a mistake."""

import shutil

import pytest
import torch

import katlib.cuda
from emulator import emulation
from oracle import errors

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the emulator needs g++")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMIT = 24                                      # rounding errors of the absolute terms: some twelve operations, and sums of some thousand


def data(rows, groups, span, m=5, n=4, dtype=torch.float32, scale=1.5):
    x, g = torch.randn(2, rows, groups, span, dtype=torch.float64)
    real = torch.promote_types(dtype, torch.float32)
    a, b = torch.randn(groups, m + 1, dtype=real), torch.randn(groups, n, dtype=real)
    return g.to(dtype), (scale * x).to(dtype), a, b


def check(g, x, a, b, limit=LIMIT, **device):
    with emulation(**device):
        y, (dx, da, db) = katlib.cuda.forward(x, a, b), katlib.cuda.backward(g, x, a, b)
    assert y.dtype == dx.dtype == x.dtype and da.dtype == db.dtype == a.dtype and y.shape == dx.shape == x.shape
    worst = errors((y, dx, da, db), g, x, a, b)
    assert max(worst.values()) < limit, worst
    return worst
