"""GR-KAN layers: what they compute, in which type, and from which start."""

import copy
import pickle

import pytest
import torch
from resets import RESETS, parents_first
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.rational import STORED

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


LAYERS = {
    "GroupRational": lambda **kwargs: katlib.GroupRational(16, **kwargs),
    "GRKAN": lambda **kwargs: katlib.GRKAN(16, 8, **kwargs),
    "GRKANMlp": lambda **kwargs: katlib.GRKANMlp(16, 32, 16, **kwargs),
}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


TYPES = [torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
def test_parameters_are_made_as_the_type_that_is_asked_for(make, dtype):
    layer = make(dtype=dtype, device="cpu")
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.randn(5, 16, dtype=dtype)).dtype == dtype


@pytest.fixture
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", TYPES)
def test_parameters_are_of_the_default_type(make, default_dtype):
    """As those of torch.nn.Linear."""
    layer = make()
    assert {p.dtype for p in layer.parameters()} == {default_dtype}
    assert layer(torch.randn(5, 16)).isfinite().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_default_type_does_not_change_the_coefficients(default_dtype):
    act = katlib.GroupRational(16, init="gelu", dtype=torch.float64)
    expected = STORED["gelu"]["5,4"]["numerator"]
    assert act.weight_numerator.tolist() == [expected]


def test_parameters_are_made_on_the_default_device(make):
    with torch.device("meta"):
        assert all(p.is_meta for p in make().parameters())
    assert all(p.is_meta for p in make(device="meta").parameters())
    with torch.device("meta"):
        assert not any(p.is_meta for p in make(device="cpu").parameters())


def test_layers_are_made_in_fake_tensor_mode(make):
    with FakeTensorMode():
        layer = make()
        assert layer(torch.empty(5, 16)).shape[0] == 5
        layer.reset_parameters()


@pytest.mark.parametrize("dtype", TYPES)
def test_layers_are_cast_and_drawn_again(make, dtype):
    layer = make().to(dtype)
    layer.reset_parameters()
    assert layer(torch.randn(5, 16, dtype=dtype)).isfinite().all()
    assert {p.dtype for p in layer.parameters()} == {dtype}


def test_drop_and_bias_may_be_pairs():
    """Some of timm's models pass them as such."""
    mlp = katlib.GRKANMlp(16, drop=(0.1, 0.2), bias=(True, False))
    assert (mlp.drop1.p, mlp.drop2.p) == (0.1, 0.2)
    assert mlp.fc1.bias is not None
    assert mlp.fc2.bias is None


WAYS = [*RESETS, lambda layer: layer.reset_parameters()]


def fill(layer, value):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)


def check_fresh(layer):
    """The functions are where they start, and the linear maps have their scale."""
    x = torch.linspace(-3, 3, 61)
    for act in (layer.act1, layer.act2):
        target = F.silu(x) if act is layer.act2 else x
        assert_close(act(x[:, None].expand(-1, act.channels))[:, 0], target, atol=2e-3, rtol=0)
    for fc, init in ((layer.fc1, "identity"), (layer.fc2, "swish")):
        std = (katlib.gain(init) / fc.in_features) ** 0.5
        assert fc.weight.std().item() == pytest.approx(std, rel=0.05)
        assert (fc.bias == 0).all()


@pytest.mark.parametrize("reset", WAYS)
@pytest.mark.parametrize("rest", [7.0, float("nan")])
def test_whatever_resets_a_layer_gives_back_a_fresh_one(reset, rest):
    """In any order: learned or uninitialised numbers are not read."""
    layer = katlib.GRKANMlp(64, 128)
    fill(layer, rest)
    reset(layer)
    check_fresh(layer)


@pytest.mark.parametrize("reset", WAYS)
def test_deferred_initialisation(reset):
    with torch.device("meta"):
        layer = katlib.GRKANMlp(64, 128)
    layer.to_empty(device="cpu")
    fill(layer, float("nan"))
    reset(layer)
    check_fresh(layer)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_reset_without_touching_the_original(copied):
    layer = katlib.GRKANMlp(64, 128)
    before = copy.deepcopy(layer.state_dict())
    twin = copied(layer)
    fill(twin, 7.0)
    parents_first(twin)
    check_fresh(twin)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_linear_layer_stays_pytorchs_own():
    """quantize_dynamic, for one, looks for the exact type."""
    layer = katlib.GRKANMlp(64, 128)
    assert type(layer.fc1) is type(layer.fc2) is nn.Linear


def test_a_layer_from_before_starts_were_remembered_works_and_says_so():
    layer = katlib.GroupRational(16)
    del layer.__dict__["start"]
    assert layer(torch.zeros(2, 16)).shape == (2, 16)
    with pytest.raises(RuntimeError, match="does not know where it started"):
        layer.reset_parameters()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: katlib.GRKAN(30, 10), "does not divide channels=30"),
        (lambda: katlib.GRKANMlp(32, drop=(0.1, 0.2, 0.3)), "one value or a pair"),
        (lambda: katlib.GRKANMlp(32, norm_layer=nn.LayerNorm), "no norm"),
        (lambda: katlib.GRKANMlp(32, init=("identity", "selu")), "'selu' is not known"),
    ],
)
def test_bad_layers_say_what_is_allowed(make, words):
    with pytest.raises(ValueError, match=words):
        make()
