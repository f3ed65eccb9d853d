"""The reference's own gradients against autograd, which differentiates its forward."""

import pytest
import torch
from torch.testing import assert_close

from katlib.reference import evaluate, gradients, horner, sign_of


def grouped(rows_a, rows_b, m, n, groups=4):
    x = torch.randn(3, groups, 5, dtype=torch.float64)
    a = torch.randn(rows_a, m + 1, dtype=torch.float64)
    b = torch.randn(rows_b, n, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (x, a, b))


@pytest.mark.parametrize("degrees", [(5, 4), (0, 0), (1, 0), (0, 3), (8, 8)])
@pytest.mark.parametrize("rows", [(4, 4), (1, 4), (2, 1)])
def test_gradients_are_those_of_the_function(rows, degrees):
    inputs = grouped(*rows, *degrees)
    g = torch.randn(3, 4, 5, dtype=torch.float64)
    y = evaluate(*inputs)
    expected = torch.autograd.grad(y, inputs, g, allow_unused=True, materialize_grads=True)
    assert_close(gradients(g, *inputs), expected)


def test_the_sign_of_zero_is_plus_one():
    assert sign_of(torch.tensor([-2.0, -0.0, 0.0, 3.0])).tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_horner_evaluates_a_polynomial():
    t = torch.tensor([[[2.0, -1.0]]])
    assert horner(t, torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[[17.0, 2.0]]]
