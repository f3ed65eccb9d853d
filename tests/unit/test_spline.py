"""B-spline KAN layers: the basis, and the sum over edges."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.spline import bspline_basis

KNOTS = torch.arange(-3, 9, dtype=torch.float64)


@pytest.fixture
def basis():
    return bspline_basis(torch.linspace(0, 4.999, 200, dtype=torch.float64), KNOTS, 3)


def test_the_basis_sums_to_one(basis):
    assert basis.shape == (200, 8)
    assert_close(basis.sum(-1), torch.ones(200, dtype=torch.float64))


def test_the_basis_functions_are_local_bumps(basis):
    assert (basis >= 0).all()
    assert ((basis > 0).sum(-1) <= 4).all()


def test_the_cubic_basis_at_a_knot_is_one_four_one_sixths():
    values = bspline_basis(torch.tensor([2.0], dtype=torch.float64), KNOTS, 3)[0, 2:5]
    assert_close(values, torch.tensor([1, 4, 1], dtype=torch.float64) / 6)


def test_splines_reproduce_a_cubic():
    """Cubic splines contain all cubics: least squares on the basis leaves nothing over."""
    x = torch.linspace(-0.999, 0.999, 100, dtype=torch.float64)
    basis = bspline_basis(x, katlib.SplineKAN(1, 1).double().knots, 3)
    y = 1 - x + 2 * x**3
    left_over = y - basis @ torch.linalg.lstsq(basis, y[:, None]).solution[:, 0]
    assert left_over.abs().max() < 1e-10


def test_a_spline_kan_is_a_sum_over_edges():
    layer = katlib.SplineKAN(3, 2, grid=4, order=2).double()
    x = torch.rand(5, 3, dtype=torch.float64) * 2 - 1

    def edge(i, o):
        spline = bspline_basis(x[:, i], layer.knots, 2) @ layer.spline_weight[o, i]
        return layer.base_weight[o, i] * F.silu(x[:, i]) + spline

    expected = torch.stack([sum(edge(i, o) for i in range(3)) for o in range(2)], 1)
    assert_close(layer(x), expected)


def test_a_spline_kan_tells_its_sizes():
    assert "3, 2, grid=4, order=2" in repr(katlib.SplineKAN(3, 2, grid=4, order=2))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: katlib.SplineKAN(2, 0), "sizes and grid >= 1"),
        (lambda: katlib.SplineKAN(2, 2, interval=(1, 1)), "lo < hi"),
        (lambda: katlib.SplineKAN(2, 2)(torch.zeros(3, 4)), "last dimension must be 2"),
        (lambda: bspline_basis(torch.zeros(1), torch.arange(3.0), 3), "at least order"),
    ],
)
def test_bad_layers_say_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ---- knots of each input


def test_each_input_may_have_knots_of_its_own():
    knots = torch.stack([KNOTS, 2 * KNOTS + 1])
    x = torch.rand(6, 2, dtype=torch.float64) * 5
    values = bspline_basis(x, knots, 3)
    expected = [bspline_basis(x[:, i], knots[i], 3) for i in range(2)]
    assert_close(values, torch.stack(expected, 1))


def test_resetting_a_layer_puts_its_knots_back():
    layer = katlib.SplineKAN(2, 3, interval=(-3, 3)).double()
    start = layer.knots.clone()
    layer.update_grid(torch.rand(50, 2))
    layer.reset_parameters()
    assert_close(layer.knots, start)


def test_a_layer_made_without_memory_gets_its_knots_when_it_is_initialised():
    with torch.device("meta"):
        layer = katlib.SplineKAN(2, 3)
    layer.to_empty(device="cpu").reset_parameters()
    assert_close(layer.knots, katlib.SplineKAN(2, 3).knots)


# ---- update_grid


def ends_of_intervals(layer):
    """The knots between which the splines live, (in_features, grid + 1)."""
    return layer.knots[:, layer.order : layer.knots.shape[1] - layer.order]


def change_of_outputs(layer, x, **options):
    """The largest change that `update_grid` makes, over the outputs' standard deviation."""
    with torch.no_grad():
        before = layer(x)
        layer.update_grid(x, **options)
        return ((layer(x) - before).abs().max() / before.std()).item()


def uniform(*shape, lo=-1.0, hi=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (lo + (hi - lo) * torch.rand(*shape, generator=generator)).to(dtype)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return katlib.SplineKAN(4, 3)


@pytest.mark.parametrize(
    "x",
    [
        uniform(1000, 4),
        uniform(1000, 4, lo=0.2, hi=0.5),
        uniform(1000, 4) ** 3,
        uniform(20, 50, 4),
        uniform(3, 4),
        uniform(4),
        uniform(1, 4).expand(100, 4),
        torch.full((10, 4), 7.0),
        uniform(1000, 4).round(),
    ],
    ids=[
        "uniform",
        "narrow",
        "crowded",
        "batches",
        "few samples",
        "one sample",
        "constants in the grid",
        "constants beyond it",
        "three values",
    ],
)
def test_moving_the_grid_keeps_the_outputs(layer, x):
    """To 3% of their deviation on the first grid, whatever the samples are."""
    layer.double()
    x = x.double()
    scale = layer(uniform(1000, 4).double()).std()
    before = layer(x)
    layer.update_grid(x)
    assert (layer(x) - before).abs().max() < 0.03 * scale
    assert (layer.knots.diff() > 0).all()
    ends = ends_of_intervals(layer)
    samples = x.reshape(-1, 4)
    assert (ends[:, 0] < samples.amin(0)).all() and (samples.amax(0) < ends[:, -1]).all()


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 0.03), (torch.float16, 0.03), (torch.bfloat16, 0.06)]
)
@pytest.mark.parametrize("hi", [1.0, 0.01])
def test_moving_the_grid_keeps_the_outputs_in_low_precision(layer, dtype, bound, hi):
    x = uniform(1000, 4, lo=-hi, hi=hi, dtype=dtype)
    layer.to(dtype)
    scale = layer(uniform(1000, 4, dtype=dtype)).std()
    with torch.no_grad():
        before = layer(x)
        layer.update_grid(x)
        assert (layer(x) - before).abs().max() < bound * scale
    assert (layer.knots.diff() > 0).all()
    assert layer.knots.dtype == layer.spline_weight.dtype == dtype


def test_moving_the_grid_again_on_the_same_samples_changes_nothing(layer):
    x = uniform(500, 4).double() ** 3
    layer.double().update_grid(x)
    assert change_of_outputs(layer, x) < 1e-12


def test_a_function_that_both_grids_have_is_kept_everywhere():
    """A cubic is a spline on any knots."""
    layer = katlib.SplineKAN(1, 1).double()
    x = uniform(300, 1, lo=-0.99, hi=0.99, dtype=torch.float64)
    basis = bspline_basis(x[:, 0], layer.knots, 3)
    cubic = torch.linalg.lstsq(basis, 1 - x + 2 * x**3).solution
    with torch.no_grad():
        layer.base_weight.zero_()
        layer.spline_weight.copy_(cubic[:, 0])
    layer.update_grid(0.4 * x + 0.3)
    fresh = torch.linspace(-0.08, 0.68, 99, dtype=torch.float64)[:, None]
    assert_close(layer(fresh), 1 - fresh + 2 * fresh**3, rtol=0, atol=1e-8)


def test_between_few_samples_the_function_stays_near_what_it_was(layer):
    fresh = torch.stack([torch.linspace(lo, lo + 0.4, 50) for lo in (-0.9, -0.5, 0, 0.3)], 1)
    before = layer(fresh)
    layer.update_grid(fresh[[0, -1]])
    assert (layer(fresh) - before).abs().max() < 0.02 * before.std()


@pytest.mark.parametrize("grid_eps, longest", [(1.0, 0.4), (0.0, 0.95)])
def test_the_intervals_are_even_or_hold_equally_many_samples(grid_eps, longest):
    x = uniform(10_000, 1, dtype=torch.float64) ** 5
    layer = katlib.SplineKAN(1, 1).double()
    layer.update_grid(x, grid_eps=grid_eps, margin=0.0)
    ends = ends_of_intervals(layer)[0]
    assert ends.diff().max() == pytest.approx(longest, abs=0.05)
    counts = torch.histogram(x[:, 0], ends).hist
    assert (counts.max() - counts.min() <= 2) == (grid_eps == 0)


def test_the_margin_is_a_share_of_the_range():
    layer = katlib.SplineKAN(1, 1).double()
    layer.update_grid(torch.tensor([[2.0], [3.0], [4.0]]), margin=0.25)
    ends = ends_of_intervals(layer)[0]
    assert ends[[0, -1]].tolist() == pytest.approx([1.5, 4.5])


def trained_error(moves_its_grid):
    """Of an edge that learns a wave on a twentieth of its first grid."""
    torch.manual_seed(0)
    x = uniform(400, 1, lo=0.3, hi=0.4, dtype=torch.float64)
    y = torch.sin(100 * x)
    layer = katlib.SplineKAN(1, 1).double()
    if moves_its_grid:
        layer.update_grid(x)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.mse_loss(layer(x), y)
        value.backward()
        return value

    optimizer.step(loss)
    return loss().sqrt().item()


def test_a_function_on_a_narrow_range_is_learned_better_after_moving_the_grid():
    assert trained_error(moves_its_grid=True) < 0.1 * trained_error(moves_its_grid=False)


def test_moving_the_grid_keeps_the_parameters_of_an_optimizer(layer):
    optimizer = torch.optim.Adam(layer.parameters())
    parameters = list(layer.parameters())
    layer.update_grid(uniform(100, 4))
    assert all(old is new for old, new in zip(parameters, layer.parameters(), strict=True))
    before = layer.spline_weight.detach().clone()
    layer(uniform(100, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer.spline_weight, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_layer_can_be_trained_after_its_grid_was_moved_in_any_mode(layer, mode):
    with mode():
        layer.update_grid(uniform(100, 4))
    layer(uniform(5, 4).requires_grad_()).sum().backward()
    assert layer.spline_weight.grad.abs().sum() > 0
    assert layer.spline_weight.is_leaf and not layer.knots.requires_grad


@pytest.mark.parametrize("x", [uniform(100, 4), torch.full((9, 4), 7.3)], ids=["range", "constant"])
def test_the_default_dtype_and_device_do_not_matter(layer, x):
    layer.double()
    other = copy.deepcopy(layer)
    layer.update_grid(x)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            other.update_grid(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(other.knots, layer.knots)
    assert torch.equal(other.spline_weight, layer.spline_weight)


@pytest.mark.parametrize("saved_is_moved", [False, True])
@pytest.mark.parametrize("loaded_is_moved", [False, True])
def test_state_dicts_from_before_and_after_can_be_loaded(saved_is_moved, loaded_is_moved):
    saved, loaded = nn.Sequential(katlib.SplineKAN(4, 3)), nn.Sequential(katlib.SplineKAN(4, 3))
    for model, is_moved in ((saved, saved_is_moved), (loaded, loaded_is_moved)):
        if is_moved:
            model[0].update_grid(uniform(100, 4, lo=-0.5))
    copied = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    for model in (loaded, copied):
        model.load_state_dict(saved.state_dict())
        assert_close(model(uniform(9, 4)), saved(uniform(9, 4)))


def test_a_state_dict_of_another_grid_is_refused(layer):
    with pytest.raises(RuntimeError, match="size mismatch for knots"):
        layer.load_state_dict(katlib.SplineKAN(4, 3, grid=7).state_dict())


@pytest.mark.parametrize(
    "x, options, words",
    [
        (torch.zeros(3, 5), {}, "last dimension must be 4"),
        (torch.tensor(1.0), {}, "last dimension must be 4"),
        (torch.zeros(0, 4), {}, "must hold samples"),
        (torch.full((3, 4), torch.nan), {}, "all of them finite"),
        (uniform(3, 4), {"grid_eps": 1.5}, "0 <= grid_eps <= 1"),
        (uniform(3, 4), {"margin": -0.1}, "margin >= 0"),
        (1e38 * uniform(9, 4).double() * 3, {}, "float32 cannot hold"),
    ],
)
def test_samples_that_do_not_fit_say_what_is_allowed(layer, x, options, words):
    before = layer.spline_weight.detach().clone()
    with pytest.raises(ValueError, match=words):
        layer.update_grid(x, **options)
    assert torch.equal(layer.spline_weight, before) and layer.knots.ndim == 1
