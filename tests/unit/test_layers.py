"""GR-KAN layers, B-spline layers, their initialisation by its consequence, and the transformer around them."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.init import mimetic_, truncated_normal_, variance_preserving_
from katlib.spline import bspline_basis
from katlib.vit import DropPath

KAT_TINY = (
    Path(__file__).parent / "kat_tiny_keys.json"
)  # names and shapes of the released KAT-T's parameters


def test_a_grkan_is_a_rational_function_then_a_linear_map():
    layer = katlib.GRKAN(24, 10, groups=4)
    x = torch.randn(2, 3, 24)
    expected = F.linear(
        katlib.rational(x, layer.act.weight_numerator, layer.act.weight_denominator),
        layer.fc.weight,
        layer.fc.bias,
    )
    assert_close(layer(x), expected)
    assert katlib.GRKAN(24, 10, groups=4, bias=False).fc.bias is None


def test_a_grkan_mlp_is_two_of_them():
    mlp = katlib.GRKANMlp(16, 32, 8, groups=4)
    x = torch.randn(5, 16)
    hidden = mlp.fc1(mlp.act1(x))
    assert_close(mlp(x), mlp.fc2(mlp.act2(hidden)))
    assert mlp(x).shape == (5, 8) and hidden.shape == (5, 32)
    assert_close(mlp.act1(x), x)  # the first starts as the identity
    assert_close(mlp.act2(hidden), F.silu(hidden), atol=2e-3, rtol=0)  # and the second as swish
    assert [name for name, _ in katlib.GRKANMlp(16).named_children()] == [
        "act1",
        "drop1",
        "fc1",
        "act2",
        "drop2",
        "fc2",
    ]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_both_functions_compute_in_the_half_type(half):
    mlp, x = katlib.GRKANMlp(32, 64), torch.randn(5, 7, 32)
    seen = []
    for act in (mlp.act1, mlp.act2):
        act.register_forward_hook(
            lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
        )
    with torch.autocast("cpu", half):
        y = mlp(x)
        assert katlib.GRKAN(32, 16)(x).dtype == half
        with torch.autocast("cpu", enabled=False):
            assert mlp(x).dtype == torch.float32
    first = (
        half if half == torch.bfloat16 else torch.float32
    )  # in float16 it would be cut off at 65,504 before the function sees it
    assert seen == [(first, first), (half, half)] + [(torch.float32, torch.float32)] * 2
    softsign = katlib.GRKAN(8, 4, groups=1, init=([0.0, 1.0], [1.0]), degrees=(1, 1))
    with torch.autocast("cpu", half):
        assert softsign(torch.full((2, 8), 1e5)).isfinite().all()
    with torch.device("meta"):
        assert katlib.GRKANMlp(32, 64)(torch.empty(5, 32)).shape == (5, 32)  # meta has no autocast
    assert_close(y.float(), mlp(x), atol=0.05, rtol=0.05)
    y.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in mlp.parameters())


def test_dropout_drops_while_training():
    mlp = katlib.GRKANMlp(64, drop=0.5)
    x = torch.randn(8, 64)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: katlib.GRKAN(30, 10), "does not divide channels=30"),
        (lambda: katlib.GRKANMlp(32, norm_layer=nn.LayerNorm), "no norm"),
        (lambda: katlib.GRKANMlp(32, init=("identity", "selu")), "'selu' is not known"),
        (lambda: katlib.SplineKAN(2, 0), "sizes and grid >= 1"),
        (lambda: katlib.SplineKAN(2, 2, interval=(1, 1)), "lo < hi"),
        (lambda: katlib.SplineKAN(2, 2)(torch.zeros(3, 4)), "last dimension must be 2"),
        (lambda: bspline_basis(torch.zeros(1), torch.arange(3.0), 3), "at least order"),
        (
            lambda: katlib.VisionTransformer(img_size=30, patch_size=16),
            "patch_size=16 does not divide img_size=30",
        ),
        (
            lambda: katlib.VisionTransformer(img_size=32, embed_dim=10, num_heads=3),
            "num_heads=3 does not divide",
        ),
        (
            lambda: katlib.VisionTransformer(img_size=32, mlp="kan", depth=1),
            "allowed are 'grkan' and 'mlp'",
        ),
    ],
)
def test_bad_layers_say_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_spline_basis_is_a_partition_of_unity_of_local_bumps():
    knots = torch.arange(-3, 9, dtype=torch.float64)
    x = torch.linspace(0, 4.999, 200, dtype=torch.float64)
    basis = bspline_basis(x, knots, 3)
    assert basis.shape == (200, 8)
    assert_close(basis.sum(-1), torch.ones(200, dtype=torch.float64))
    assert (basis >= 0).all() and ((basis > 0).sum(-1) <= 4).all()
    assert_close(
        bspline_basis(torch.tensor([2.0], dtype=torch.float64), knots, 3)[0, 2:5],
        torch.tensor([1, 4, 1], dtype=torch.float64) / 6,
    )


def test_splines_reproduce_a_cubic():
    """Cubic splines contain all cubics: least squares on the basis leaves nothing over."""
    x = torch.linspace(-0.999, 0.999, 100, dtype=torch.float64)
    layer = katlib.SplineKAN(1, 1).double()
    basis = bspline_basis(x, layer.knots, 3)
    y = 1 - x + 2 * x**3
    left_over = y - basis @ torch.linalg.lstsq(basis, y[:, None]).solution[:, 0]
    assert left_over.abs().max() < 1e-10


def test_a_spline_kan_is_a_sum_over_edges():
    layer = katlib.SplineKAN(3, 2, grid=4, order=2).double()
    x = torch.rand(5, 3, dtype=torch.float64) * 2 - 1
    for o in range(2):
        edges = [
            layer.base_weight[o, i] * F.silu(x[:, i])
            + bspline_basis(x[:, i], layer.knots, 2) @ layer.spline_weight[o, i]
            for i in range(3)
        ]
        assert_close(layer(x)[:, o], sum(edges))


@pytest.mark.parametrize("activation", ["identity", "relu", "swish", "gelu"])
def test_variance_is_kept_by_one_layer(activation):
    from katlib.fit import TARGETS

    linear = nn.Linear(1024, 1024)
    variance_preserving_(linear, activation)
    y = linear(TARGETS[activation](torch.randn(2048, 1024)))
    assert 0.97 < y.pow(2).mean().item() < 1.03
    assert (linear.bias == 0).all()


def kat(depth=12, dim=192, **options):
    return katlib.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=dim,
        depth=depth,
        num_heads=3,
        num_classes=10,
        **options,
    )


def mlp_output_sizes(model):
    """The standard deviation of what each block's MLP makes of normalised tokens."""
    sizes, x = [], model.patch_embed(torch.randn(8, 3, 32, 32))
    x = torch.cat([model.cls_token.expand(8, -1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        y = block.mlp(block.norm2(x))
        sizes.append(y.std().item())
        x = x + y
    return sizes


@torch.no_grad()
@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_variance_through_twelve_blocks(mlp):
    """After construction, with nothing more called, every MLP passes a signal of size 1 on with size 1."""
    sizes = mlp_output_sizes(kat(mlp=mlp))
    assert len(sizes) == 12 and all(0.85 < size < 1.15 for size in sizes), sizes


@torch.no_grad()
def test_what_overwritten_weights_would_do():
    """The released code draws its KAN weights and then overwrites them with std 0.02: what the test above would find there."""
    model = kat()
    for block in model.blocks:
        for layer in (block.mlp.fc1, block.mlp.fc2):
            truncated_normal_(layer.weight, 0.02)
    assert all(size < 0.1 for size in mlp_output_sizes(model))


def test_a_seed_gives_the_same_weights_in_every_torch():
    """Numbers of torch 2.11's trunc_normal_, which newer versions draw otherwise; the one in 2^24 that is cut stays near."""
    drawn = truncated_normal_(torch.empty(4), 0.02)
    assert_close(drawn, torch.tensor([-0.00018766950, 0.014660066, -0.027003810, -0.022336882]))
    assert truncated_normal_(torch.empty(100_000), 0.02).std() == pytest.approx(0.02, rel=0.01)
    weight = torch.empty(1)
    weight.uniform_ = lambda low, high: weight.fill_(low)
    assert truncated_normal_(weight, 0.02).item() == pytest.approx(-0.12)


@torch.no_grad()
def test_stacked_grkans_keep_the_signal():
    x, sizes = torch.randn(1024, 1024), []
    for _ in range(12):
        x = katlib.GRKAN(1024, 1024)(x)
        sizes.append(x.std().item())
    assert all(0.6 < size < 1.7 for size in sizes), sizes


@torch.no_grad()
def test_mimetic_attention():
    """In each head W_q^T W_k leans towards + identity, and W_proj W_v towards - identity."""
    dim, heads = 96, 3
    qkv, proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    mimetic_(qkv, proj, heads)
    q, k, v = qkv.weight.view(3, dim, dim)
    off = ~torch.eye(dim, dtype=torch.bool)
    product = proj.weight @ v
    assert_close(product.diagonal().mean(), torch.tensor(-0.4), atol=0.03, rtol=0)
    assert product[off].std().item() == pytest.approx(0.4 / math.sqrt(dim), rel=0.05)
    for h in range(heads):
        one_head = q[h * 32 : (h + 1) * 32].T @ k[h * 32 : (h + 1) * 32]
        assert one_head.diagonal().mean() > 5 * one_head[off].mean().abs()
    assert (qkv.bias == 0).all() and (proj.bias == 0).all()


def test_names_shapes_and_count_are_the_released_kat_tiny():
    model = katlib.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=1000
    )
    released = json.loads(KAT_TINY.read_text())
    assert {name: list(p.shape) for name, p in model.state_dict().items()} == released
    assert sum(p.numel() for p in model.parameters()) == 5_718_328


def test_twins_start_equal_outside_their_mlps():
    models = []
    for mlp in ("grkan", "mlp"):
        torch.manual_seed(3)
        models.append(kat(2, mlp=mlp).state_dict())
    shared = [name for name in models[0] if ".mlp." not in name]
    assert shared == [name for name in models[1] if ".mlp." not in name] and len(shared) > 20
    assert all(torch.equal(models[0][name], models[1][name]) for name in shared)


def test_a_transformer_runs_and_every_parameter_gets_a_gradient():
    model = kat(2, groups=4, numerator_groups=2, drop_path_rate=0.1, drop_rate=0.1)
    model.train()
    F.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10).backward()
    without = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []
    with pytest.raises(ValueError, match="must be"):
        model(torch.randn(1, 3, 16, 16))


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    path, x = DropPath(0.25), torch.ones(20_000, 2, 3)
    y = path(x)
    assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (y.flatten(1).amax(1) == y.flatten(1).amin(1)).all()
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    path.eval()
    assert torch.equal(path(x), x)
