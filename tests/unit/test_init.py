"""Initialisation by its consequence: the size of a signal after layers."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import katlib
from katlib.fit import TARGETS
from katlib.init import mimetic_, truncated_normal_, variance_preserving_


@pytest.mark.parametrize("activation", ["identity", "relu", "swish", "gelu"])
def test_variance_is_kept_by_one_layer(activation):
    linear = nn.Linear(1024, 1024)
    variance_preserving_(linear, activation)
    y = linear(TARGETS[activation](torch.randn(2048, 1024)))
    assert 0.97 < y.pow(2).mean().item() < 1.03
    assert (linear.bias == 0).all()


def test_a_layer_on_the_meta_device_is_left_as_it_is():
    with torch.device("meta"):
        linear = nn.Linear(8, 8)
    variance_preserving_(linear)
    assert linear.weight.is_meta


def test_the_gain_of_a_group_rational_averages_its_groups():
    layer = katlib.GroupRational(8, groups=2, init="swish", numerator_groups=2)
    with torch.no_grad():
        layer.weight_numerator[0] *= 2
    second_moment = 1 / katlib.gain(katlib.GroupRational(8, init="swish"))
    assert katlib.gain(layer) == pytest.approx(1 / (second_moment * (4 + 1) / 2))


@torch.no_grad()
def test_stacked_grkans_keep_the_signal():
    x, sizes = torch.randn(1024, 1024), []
    for _ in range(12):
        x = katlib.GRKAN(1024, 1024)(x)
        sizes.append(x.std().item())
    assert all(0.6 < size < 1.7 for size in sizes), sizes


def mlp_output_sizes(model):
    """The standard deviation of each block's MLP's output for normalised tokens."""
    sizes, x = [], model.patch_embed(torch.randn(8, 3, 32, 32))
    x = torch.cat([model.cls_token.expand(8, -1, -1), x], 1) + model.pos_embed
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        y = block.mlp(block.norm2(x))
        sizes.append(y.std().item())
        x = x + y
    return sizes


def twelve_blocks(mlp="grkan"):
    return katlib.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=10, mlp=mlp
    )


@torch.no_grad()
@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_variance_through_twelve_blocks(mlp):
    """Straight after construction, every MLP passes a signal of size 1 on with size 1."""
    sizes = mlp_output_sizes(twelve_blocks(mlp))
    assert len(sizes) == 12
    assert all(0.85 < size < 1.15 for size in sizes), sizes


@torch.no_grad()
def test_overwritten_weights_lose_the_signal():
    """The released code draws its KAN weights and then overwrites them with std 0.02."""
    model = twelve_blocks()
    for block in model.blocks:
        for layer in (block.mlp.fc1, block.mlp.fc2):
            truncated_normal_(layer.weight, 0.02)
    assert all(size < 0.1 for size in mlp_output_sizes(model))


def test_a_seed_gives_the_same_weights_in_every_torch():
    """Numbers of torch 2.11's trunc_normal_, which newer versions draw otherwise."""
    drawn = truncated_normal_(torch.empty(4), 0.02)
    assert_close(drawn, torch.tensor([-0.00018766950, 0.014660066, -0.027003810, -0.022336882]))


def test_a_truncated_normal_has_its_standard_deviation():
    assert truncated_normal_(torch.empty(100_000), 0.02).std() == pytest.approx(0.02, rel=0.01)


def test_a_truncated_normal_is_cut_at_six_standard_deviations():
    """One number in 2^24 would be infinite."""
    weight = torch.empty(1)
    weight.uniform_ = lambda low, high: weight.fill_(low)
    assert truncated_normal_(weight, 0.02).item() == pytest.approx(-0.12)


DIM, HEADS = 96, 3
OFF_DIAGONAL = ~torch.eye(DIM, dtype=torch.bool)


@pytest.fixture
def attention():
    qkv, proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
    mimetic_(qkv, proj, HEADS)
    return qkv, proj


@torch.no_grad()
def test_mimetic_values_and_projection_lean_towards_minus_identity(attention):
    qkv, proj = attention
    v = qkv.weight.view(3, DIM, DIM)[2]
    product = proj.weight @ v
    assert_close(product.diagonal().mean(), torch.tensor(-0.4), atol=0.03, rtol=0)
    assert product[OFF_DIAGONAL].std().item() == pytest.approx(0.4 / math.sqrt(DIM), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("head", range(HEADS))
def test_mimetic_queries_and_keys_lean_towards_identity(attention, head):
    q, k, _ = attention[0].weight.view(3, HEADS, DIM // HEADS, DIM)
    product = q[head].T @ k[head]
    assert product.diagonal().mean() > 5 * product[OFF_DIAGONAL].mean().abs()


def test_mimetic_biases_start_at_zero(attention):
    assert all((layer.bias == 0).all() for layer in attention)
