"""The rational function against hand-computed values, a float64 oracle and finite differences."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import katlib
from katlib.rational import initial_coefficients

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {
    torch.float64: dict(rtol=1e-13, atol=1e-13),
    torch.float32: dict(rtol=2e-5, atol=1e-6),
    torch.bfloat16: dict(rtol=1e-2, atol=1e-3),
    torch.float16: dict(rtol=2e-3, atol=1e-4),
}


def definition(x, a, b):
    """F(x) in Python's own numbers, term by term: no Horner, no tensors."""
    P = sum(c * x**i for i, c in enumerate(a))
    Q = 1 + sum(abs(c) * abs(x) ** (j + 1) for j, c in enumerate(b))
    return P / Q


def coefficients(groups_n, groups_d, m=5, n=4, dtype=torch.float64):
    return torch.randn(groups_n, m + 1, dtype=dtype), torch.randn(groups_d, n, dtype=dtype)


@pytest.mark.parametrize(
    "x, a, b, F",
    [
        (2.0, [0.0, 1.0], [1.0], 2 / 3),  # softsign
        (-2.0, [0.0, 1.0], [-1.0], -2 / 3),  # the sign of b does not count
        (-3.0, [1.0, 2.0, 1.0], [0.0, 0.5], 4 / 5.5),  # (1 - 6 + 9) / (1 + 0.5 * 9)
        (0.0, [7.0, 5.0], [3.0], 7.0),
        (1.5, [2.0], [], 2.0),  # a constant
    ],
)
def test_hand_computed_values(x, a, b, F):
    a, b = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert katlib.rational(torch.tensor([x], dtype=torch.float64), a, b).item() == pytest.approx(
        F, rel=1e-15
    )


def test_hand_computed_gradients():
    """F = x / (1 + |b| |x|) at x = 2, b = -1.

    dF/dx = 1/9, dF/da = (1/3, 2/3), dF/db = -sign(b) x |x| / Q^2 = 4/9.
    """
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    katlib.rational(x, a, b).backward()
    assert x.grad.item() == pytest.approx(1 / 9)
    assert a.grad.tolist()[0] == pytest.approx([1 / 3, 2 / 3])
    assert b.grad.item() == pytest.approx(4 / 9)


def test_against_the_definition_channel_by_channel():
    """Neighbours form a group, and Gn and Gd divide the channels independently."""
    x, (a, b) = torch.randn(3, 12, dtype=torch.float64), coefficients(2, 6)
    y = katlib.rational(x, a, b)
    for channel in range(12):
        for row in range(3):
            expected = definition(
                x[row, channel].item(), a[channel // 6].tolist(), b[channel // 2].tolist()
            )
            assert y[row, channel].item() == pytest.approx(expected, rel=1e-12)


SHAPES = [  # shape, dim, Gn, Gd
    ((5, 28), -1, 1, 4),  # a group of 7 channels
    ((28,), -1, 4, 7),  # one row; groups that do not divide each other
    ((1, 1), -1, 1, 1),
    ((0, 16), -1, 2, 8),  # no rows
    ((3, 0, 16), -1, 1, 8),
    ((257, 24), -1, 1, 8),
    ((2, 12, 5, 3), 1, 3, 4),  # NCHW
    ((12, 5), 0, 1, 6),
    ((2, 3, 4, 6), -2, 2, 4),
]


@pytest.fixture
def compared(shape, dim, groups_n, groups_d, dtype):
    """x, a, b with y and a gradient g, and the same by the float64 oracle."""
    real = torch.promote_types(dtype, torch.float32)
    tensors = (torch.randn(shape), *coefficients(groups_n, groups_d))
    inputs = [t.to(c).requires_grad_() for t, c in zip(tensors, (dtype, real, real))]
    oracle = [t.detach().double().requires_grad_() for t in inputs]
    y = katlib.rational(*inputs, dim=dim)
    expected = katlib.rational_reference(*oracle, dim=dim)
    return inputs, y, oracle, expected, torch.randn(shape).to(dtype)


@pytest.mark.parametrize("shape, dim, groups_n, groups_d", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_against_the_float64_oracle(compared, shape, dtype):
    _, y, _, expected, _ = compared
    assert y.dtype == dtype
    assert y.shape == shape
    assert_close(y, expected.to(dtype), **TOLERANCE[dtype])


@pytest.mark.parametrize("shape, dim, groups_n, groups_d", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_input_gradients_against_the_float64_oracle(compared, dtype):
    inputs, y, oracle, expected, g = compared
    (got,) = torch.autograd.grad(y, inputs[:1], g)
    (wanted,) = torch.autograd.grad(expected, oracle[:1], g.double())
    assert_close(got, wanted.to(dtype), **TOLERANCE[dtype])


@pytest.mark.parametrize("shape, dim, groups_n, groups_d", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_coefficient_gradients_against_the_float64_oracle(compared, dtype):
    """They are sums of many terms of both signs, so the error counts in units of the largest."""
    inputs, y, oracle, expected, g = compared
    got = torch.autograd.grad(y, inputs[1:], g)
    wanted = torch.autograd.grad(expected, oracle[1:], g.double())
    tolerance = TOLERANCE[torch.promote_types(dtype, torch.float32)]
    for mine, true in zip(got, wanted):
        assert mine.dtype == torch.promote_types(dtype, torch.float32)
        atol = 10 * tolerance["atol"] * max(1.0, true.abs().max().item())
        assert_close(mine.double(), true, rtol=tolerance["rtol"], atol=atol)


@pytest.mark.parametrize("degrees", [(5, 4), (0, 0), (1, 0), (0, 3), (3, 2), (8, 8)])
def test_gradcheck(degrees):
    m, n = degrees
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    a, b = (c.requires_grad_() for c in coefficients(2, 3, m, n))
    assert gradcheck(katlib.rational, (x, a, b))
    assert gradgradcheck(katlib.rational, (x, a, b))


def test_the_reference_agrees_with_itself_by_finite_differences():
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    a, b = (c.requires_grad_() for c in coefficients(2, 3))
    assert gradcheck(katlib.rational_reference, (x, a, b))


@pytest.mark.parametrize("function", [katlib.rational, katlib.rational_reference])
def test_a_denominator_of_zero_learns(function):
    """db_j = -sum F z^j with Q = 1 and F = x."""
    b = torch.zeros(1, 4, requires_grad=True)
    function(torch.tensor([[0.5], [2.0]]), torch.tensor([[0.0, 1.0]]), b).sum().backward()
    expected = [-(0.5 ** (j + 1) + 2.0 ** (j + 1)) for j in range(1, 5)]
    assert_close(b.grad, torch.tensor([expected]))


@pytest.mark.parametrize(
    "change, dim",
    [
        (lambda t: t.transpose(0, 1), -1),
        (lambda t: t[:, ::2], -1),
        (lambda t: t.movedim(-1, 1), 1),
        (lambda t: t[:1].expand(6, 8, 16), -1),
    ],
)
def test_layouts_do_not_matter(change, dim):
    a, b = coefficients(2, 4, dtype=torch.float32)
    x = torch.randn(6, 8, 16)
    expected = change(katlib.rational(x, a, b))
    assert_close(katlib.rational(change(x), a, b, dim=dim), expected, rtol=0, atol=0)


def test_gradients_with_stride_zero():
    """`sum()` sends back one number expanded to a whole tensor."""
    a, b = coefficients(1, 4, dtype=torch.float32)
    x = torch.randn(5, 16, requires_grad=True)
    (summed,) = torch.autograd.grad(katlib.rational(x, a, b).sum(), x)
    (dense,) = torch.autograd.grad(katlib.rational(x, a, b), x, torch.ones(5, 16))
    assert torch.equal(summed, dense)


@pytest.mark.parametrize(
    "dtype, size", [(torch.float32, 1e6), (torch.bfloat16, 1e6), (torch.float16, 6e4)]
)
def test_large_inputs_stay_finite(dtype, size):
    a, b = (c[None].float() for c in initial_coefficients("swish"))
    x = torch.tensor([-size, -300.0, 0.0, 300.0, size], dtype=dtype, requires_grad=True)
    katlib.rational(x[:, None], a, b).float().sum().backward()
    assert x.grad.isfinite().all()
    assert katlib.rational(x.float()[:, None], a, b).isfinite().all()


def test_a_group_rational_starts_as_its_target():
    layer = katlib.GroupRational(64, groups=8, init="gelu", numerator_groups=2)
    x = torch.linspace(-3, 3, 201)[:, None].expand(-1, 64)
    assert (layer(x) - torch.nn.functional.gelu(x)).abs().max() < 5e-3


def test_the_parameters_of_a_group_rational_are_named_as_released():
    layer = katlib.GroupRational(64, groups=8, numerator_groups=2)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {"weight_numerator": (2, 6), "weight_denominator": (8, 4)}


def test_a_group_rational_tells_its_groups():
    assert "groups=8" in repr(katlib.GroupRational(64, groups=8))


def test_none_is_one_function_for_each_channel():
    layer = katlib.GroupRational(6, groups=None, numerator_groups=None)
    assert [len(p) for p in layer.parameters()] == [6, 6]


def test_a_group_rational_starts_from_a_fit():
    fit = katlib.fit_rational(torch.sin, (3, 2))
    x = torch.linspace(-3, 3, 50)[:, None].expand(-1, 4)
    layer = katlib.GroupRational(4, 2, init=fit, degrees=(3, 2))
    assert_close(layer(x), torch.sin(x), atol=2 * fit.max_error, rtol=0)


def test_a_group_rational_starts_from_a_pair():
    x = torch.linspace(-3, 3, 50)[:, None].expand(-1, 4)
    layer = katlib.GroupRational(4, 2, init=([0.0, 1.0], [1.0]), degrees=(1, 1))
    assert_close(layer(x), torch.nn.functional.softsign(x))


@pytest.mark.parametrize("context", [FakeTensorMode, lambda: torch.device("meta")])
def test_a_start_is_read_whatever_tensors_are_made_now(context):
    """Named, fitted before, or a pair of lists or of tensors that require gradients."""
    starts = ["swish", katlib.fit_rational(torch.sin), ([0.0] * 6, [1] * 4)]
    starts.append(tuple(c.requires_grad_() for c in initial_coefficients("tanh")))
    expected = [[c.tolist() for c in initial_coefficients(start)] for start in starts]
    with context():
        layers = [katlib.GroupRational(4, 2, init=start) for start in starts]
    assert [[list(row) for (row,) in layer.start] for layer in layers] == expected


@pytest.mark.parametrize("start", [(["0"], ["1"]), ([None], [1.0]), ([1.0], [1.0 + 1j])])
def test_a_start_of_other_things_than_numbers_is_refused(start):
    with pytest.raises(TypeError, match="allowed are numbers"):
        initial_coefficients(start, None)


def test_initial_coefficients_are_numbers_on_any_default_device():
    with torch.device("meta"):
        a, b = initial_coefficients("swish")
    assert (a.device.type, b.dtype) == ("cpu", torch.float64)


def test_a_reset_forgets_what_was_learned():
    layer = katlib.GroupRational(8, groups=2, init="gelu", numerator_groups=2)
    start = [p.tolist() for p in layer.parameters()]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    layer.reset_parameters()
    assert [p.tolist() for p in layer.parameters()] == start


def test_coefficients_bring_their_own_degrees():
    a, b = initial_coefficients(([0.0, 1.0], [1.0]), None)
    assert (a.tolist(), b.tolist()) == ([0.0, 1.0], [1.0])


X, A, B = torch.zeros(2, 16), torch.zeros(1, 6), torch.zeros(8, 4)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: katlib.rational([1.0], A, B), TypeError, "x must be a torch.Tensor, not list"),
        (lambda: katlib.rational(X.long(), A, B), TypeError, "torch.int64"),
        (lambda: katlib.rational(X, A.long(), B), TypeError, "numerator is torch.int64"),
        (lambda: katlib.rational(X, A, B.to("meta")), ValueError, "denominator is on meta"),
        (lambda: katlib.rational(torch.tensor(1.0), A, B), ValueError, "no dimensions"),
        (lambda: katlib.rational(X, A, B, dim=2), ValueError, "dim=2 is out of range"),
        (lambda: katlib.rational(X, A[0], B), ValueError, r"numerator has shape \(6,\)"),
        (lambda: katlib.rational(X, A, B[0]), ValueError, r"denominator has shape \(4,\)"),
        (
            lambda: katlib.rational(X, A, torch.zeros(3, 4)),
            ValueError,
            "3 groups, which do not divide the 16 channels",
        ),
        (lambda: katlib.rational(X, A, torch.zeros(0, 4)), ValueError, "0 groups"),
        (
            lambda: katlib.GroupRational(30, groups=8),
            ValueError,
            "groups=8 does not divide channels=30",
        ),
        (lambda: katlib.GroupRational(16, groups=0), ValueError, "groups=0"),
        (
            lambda: katlib.GroupRational(16, init="gleu"),
            ValueError,
            "'gleu' is not known; allowed are 'identity'",
        ),
        (lambda: katlib.GroupRational(16, degrees=(4, 3)), ValueError, r"not for \(4, 3\)"),
        (lambda: katlib.GroupRational(16, degrees=(-1, 3)), ValueError, "m >= 0"),
        (
            lambda: katlib.GroupRational(16, init=([0.0], [1.0])),
            ValueError,
            "1 numerator and 1 denominator",
        ),
        (lambda: katlib.GroupRational(16)(torch.zeros(2, 8)), ValueError, "must have 16 channels"),
        (lambda: katlib.GroupRational(16, degrees=(0, 4), init="identity"), ValueError, "m >= 1"),
        (lambda: katlib.GroupRational(16, dim=1)(torch.zeros(16)), ValueError, "dimension 1 must"),
        (lambda: initial_coefficients("swish", None), ValueError, "no degrees of its own"),
    ],
)
def test_bad_input_says_what_is_allowed(call, error, words):
    with pytest.raises(error, match=words):
        call()
