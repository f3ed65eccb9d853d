"""GR-KAN layers: what they compute, in which type, and from which start."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib

HALVES = [torch.bfloat16, torch.float16]


def test_a_grkan_is_a_rational_function_then_a_linear_map():
    layer = katlib.GRKAN(24, 10, groups=4)
    x = torch.randn(2, 3, 24)
    activated = katlib.rational(x, layer.act.weight_numerator, layer.act.weight_denominator)
    assert_close(layer(x), F.linear(activated, layer.fc.weight, layer.fc.bias))


def test_a_grkan_can_go_without_a_bias():
    assert katlib.GRKAN(24, 10, groups=4, bias=False).fc.bias is None


def test_a_grkan_mlp_is_two_grkans():
    mlp = katlib.GRKANMlp(16, 32, 8, groups=4)
    x = torch.randn(5, 16)
    hidden = mlp.fc1(mlp.act1(x))
    assert_close(mlp(x), mlp.fc2(mlp.act2(hidden)))
    assert hidden.shape == (5, 32)
    assert mlp(x).shape == (5, 8)


def test_a_grkan_mlp_starts_as_identity_and_swish():
    mlp = katlib.GRKANMlp(16, 32, groups=4)
    x, hidden = torch.randn(5, 16), torch.randn(5, 32)
    assert_close(mlp.act1(x), x)
    assert_close(mlp.act2(hidden), F.silu(hidden), atol=2e-3, rtol=0)


def test_the_parts_of_a_grkan_mlp_are_named_as_released():
    names = [name for name, _ in katlib.GRKANMlp(16).named_children()]
    assert names == ["act1", "drop1", "fc1", "act2", "drop2", "fc2"]


def dtypes_seen(mlp):
    """A list that fills with (input, output) types of both activations."""
    seen = []
    for act in (mlp.act1, mlp.act2):
        act.register_forward_hook(
            lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
        )
    return seen


@pytest.mark.parametrize("half", HALVES)
def test_under_autocast_both_functions_compute_in_the_half_type(half):
    mlp = katlib.GRKANMlp(32, 64)
    seen = dtypes_seen(mlp)
    with torch.autocast("cpu", half):
        mlp(torch.randn(5, 7, 32))
    # in float16 the first input would be cut off at 65,504 before the function sees it
    first = half if half == torch.bfloat16 else torch.float32
    assert seen == [(first, first), (half, half)]


@pytest.mark.parametrize("half", HALVES)
def test_autocast_can_be_turned_off_inside(half):
    mlp = katlib.GRKANMlp(32, 64)
    seen = dtypes_seen(mlp)
    with torch.autocast("cpu", half), torch.autocast("cpu", enabled=False):
        assert mlp(torch.randn(5, 7, 32)).dtype == torch.float32
    assert seen == [(torch.float32, torch.float32)] * 2


@pytest.mark.parametrize("half", HALVES)
def test_a_grkan_under_autocast_returns_the_half_type(half):
    with torch.autocast("cpu", half):
        assert katlib.GRKAN(32, 16)(torch.randn(5, 7, 32)).dtype == half


@pytest.mark.parametrize("half", HALVES)
def test_large_inputs_are_brought_down_before_they_are_cast(half):
    softsign = katlib.GRKAN(8, 4, groups=1, init=([0.0, 1.0], [1.0]), degrees=(1, 1))
    with torch.autocast("cpu", half):
        assert softsign(torch.full((2, 8), 1e5)).isfinite().all()


@pytest.mark.parametrize("half", HALVES)
def test_the_meta_device_which_has_no_autocast_works_under_it(half):
    with torch.autocast("cpu", half), torch.device("meta"):
        assert katlib.GRKANMlp(32, 64)(torch.empty(5, 32)).shape == (5, 32)


@pytest.mark.parametrize("half", HALVES)
def test_values_and_gradients_under_autocast(half):
    mlp, x = katlib.GRKANMlp(32, 64), torch.randn(5, 7, 32)
    with torch.autocast("cpu", half):
        y = mlp(x)
    assert_close(y.float(), mlp(x), atol=0.05, rtol=0.05)
    y.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in mlp.parameters())


def test_dropout_drops_while_training():
    mlp = katlib.GRKANMlp(64, drop=0.5)
    x = torch.randn(8, 64)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))


def test_parameters_are_made_as_the_type_that_is_asked_for():
    mlp = katlib.GRKANMlp(16, dtype=torch.float64, device="cpu")
    assert {p.dtype for p in mlp.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: katlib.GRKAN(30, 10), "does not divide channels=30"),
        (lambda: katlib.GRKANMlp(32, norm_layer=nn.LayerNorm), "no norm"),
        (lambda: katlib.GRKANMlp(32, init=("identity", "selu")), "'selu' is not known"),
    ],
)
def test_bad_layers_say_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
