"""Initialisation by its consequence: the size of a signal after layers."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

import katlib
from katlib.fit import TARGETS
from katlib.init import gain_at_start, mimetic_, truncated_normal_, variance_preserving_


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


def test_the_gain_at_the_start_is_not_that_of_the_learned_coefficients():
    layer = katlib.GroupRational(8, init="gelu", numerator_groups=2)
    start = katlib.gain(layer)
    with torch.no_grad():
        layer.weight_numerator *= 2
    assert katlib.gain(layer) == pytest.approx(start / 4)
    assert gain_at_start(layer) == pytest.approx(start)


def test_the_gain_on_the_meta_device_says_that_there_are_no_numbers():
    layer = katlib.GroupRational(8, device="meta")
    with pytest.raises(ValueError, match="no numbers yet"):
        katlib.gain(layer)


@pytest.mark.parametrize("context", [FakeTensorMode, lambda: torch.device("meta")])
def test_gains_need_no_real_tensor(context):
    with context():
        layer = katlib.GroupRational(8, init="swish")
        assert gain_at_start(layer) == pytest.approx(katlib.gain("swish"), rel=1e-3)


def test_a_linear_layer_can_be_given_the_gain_itself():
    linear = nn.Linear(1024, 1024)
    variance_preserving_(linear, 4.0)
    assert linear.weight.std().item() == pytest.approx(2 / 32, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_type_are_drawn(dtype):
    linear = nn.Linear(512, 512, dtype=dtype)
    variance_preserving_(linear)
    assert linear.weight.double().std().item() == pytest.approx(1 / math.sqrt(512), rel=0.02)
    weight = truncated_normal_(torch.empty(100_000, dtype=dtype), 0.02)
    assert weight.double().std().item() == pytest.approx(0.02, rel=0.02)
    # drawn from bfloat16's few uniform numbers, one in 256 would be cut off at 6 std
    assert weight.abs().max().item() < 5.5 * 0.02


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


def best_approximation(dim, rank, alpha=0.7, beta=0.7):
    """The best approximation, of that rank, of alpha Z + beta I with Z ~ N(0, 1 / dim)."""
    matrix = alpha * torch.randn(dim, dim) / math.sqrt(dim) + beta * torch.eye(dim)
    U, S, Vh = torch.linalg.svd(matrix)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def queries_and_keys(dim, heads, query_key=(0.7, 0.7), value_proj=(0.4, 0.4)):
    """Both (heads, head_dim, dim), as `mimetic_` draws them."""
    qkv, proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    mimetic_(qkv, proj, heads, query_key, value_proj)
    q, k, _ = qkv.weight.detach().view(3, heads, dim // heads, dim)
    return q, k


@pytest.mark.parametrize("dim, heads", [(192, 3), (256, 8), (96, 2), (64, 1)])
def test_queries_and_keys_are_as_good_as_a_singular_value_decomposition(dim, heads):
    """The product's energy, diagonal and spectrum, against those of the best approximation."""
    rank = dim // heads
    q, k = queries_and_keys(dim, heads)
    product = (q.mT @ k).mean(0)
    drawn = q.mT @ k
    best = torch.stack([best_approximation(dim, rank) for _ in range(4)])
    spectra = [torch.linalg.svdvals(m)[:, :rank].mean(0) for m in (drawn, best)]
    assert_close(*spectra, atol=0.06, rtol=0.03)
    diagonals = [m.diagonal(dim1=1, dim2=2).mean() for m in (drawn, best)]
    assert_close(*diagonals, rtol=0.05, atol=0)
    off_diagonal = ~torch.eye(dim, dtype=torch.bool)
    assert product[off_diagonal].mean().abs() < 0.02


@pytest.mark.parametrize("query_key", [(0.0, 0.5), (0.5, 0.0), (0.1, 1.0), (0.3, -0.6), (0.0, 0.0)])
def test_any_alpha_and_beta_are_approximated(query_key):
    alpha, beta = query_key
    q, k = queries_and_keys(128, 4, query_key)
    best = best_approximation(128, 32, alpha, beta)
    diagonal = (q.mT @ k).diagonal(dim1=1, dim2=2).mean()
    assert_close(diagonal, best.diagonal().mean(), rtol=0.05, atol=0.01)
    assert_close((q.mT @ k).norm(dim=(1, 2)).mean(), best.norm(), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
def test_no_channel_of_a_head_comes_first(heads):
    """Singular values in falling order would make a head's first channels its largest."""
    q, k = queries_and_keys(256, heads)
    channels = torch.arange(256 // heads).double().expand(heads, -1)
    for factor in (q, k):
        sizes = factor.norm(dim=-1).double()
        correlation = np.corrcoef(channels.flatten(), sizes.flatten())[0, 1]
        assert abs(correlation) < 0.2


@pytest.mark.parametrize("heads", [1, 4])
def test_values_look_elsewhere_than_keys(heads):
    """The products of their directions are about N(0, 1 / dim), as those of independent ones."""
    qkv, proj = nn.Linear(256, 3 * 256), nn.Linear(256, 256)
    mimetic_(qkv, proj, heads)
    _, k, v = (F.normalize(rows, dim=1) for rows in qkv.weight.detach().view(3, 256, 256))
    products = k @ v.T
    assert products.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert abs(products.diagonal().mean().item()) < 0.25 / 16
    assert products.abs().max().item() < 7 / 16


def test_the_factors_of_a_product_are_of_one_size():
    qkv, proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
    mimetic_(qkv, proj, HEADS)
    q, k, v = qkv.weight.detach().view(3, DIM, DIM)
    assert q.norm() == pytest.approx(k.norm().item(), rel=0.02)
    assert v.norm() == pytest.approx(proj.weight.norm().item(), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_mimetic_weights_of_any_type(dtype):
    qkv, proj = (nn.Linear(DIM, width, dtype=dtype) for width in (3 * DIM, DIM))
    mimetic_(qkv, proj, HEADS)
    v = qkv.weight.double().view(3, DIM, DIM)[2]
    product = proj.weight.double() @ v
    assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.03)


class Calls(TorchFunctionMode):
    """Notes every call's name and the size of what it returns, but for the meta device."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, tuple) or (isinstance(result, torch.Tensor) and not result.is_meta):
            self.sizes.append((func.__name__, getattr(result, "shape", torch.Size()).numel()))
        return result


@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_a_model_is_drawn_once_and_without_decompositions(mlp):
    """They made a new KAT-B a hundred times as slow as a new ViT-B."""
    with Calls() as calls:
        model = katlib.VisionTransformer(
            img_size=32, patch_size=16, embed_dim=64, depth=3, num_heads=4, num_classes=10, mlp=mlp
        )
    names = [name for name, _ in calls.sizes]
    drawn = sum(size for name, size in calls.sizes if name in ("normal_", "uniform_", "rand"))
    assert not any("svd" in name or "eig" in name for name in names)
    # one in each of three blocks
    assert names.count("linalg_qr") == 3
    # PyTorch's own draw of the convolution is the only one that is replaced
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.7 * parameters < drawn <= parameters + model.patch_embed.proj.weight.numel()


def test_half_a_layer_on_the_meta_device_is_left_as_it_is():
    """FSDP gives layers their memory one after the other."""
    qkv, proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM, device="meta")
    before = qkv.weight.clone()
    mimetic_(qkv, proj, HEADS)
    assert torch.equal(qkv.weight, before)


# the first three numbers of some tensors, and the sum of all squares
GOLDEN = {
    "pos_embed": [-0.030035, 0.018123, 0.019381],
    "patch_embed.proj.weight": [-0.033994, 0.141049, 0.03688],
    "blocks.0.attn.qkv.weight": [-0.148488, -0.293253, -0.113892],
    "blocks.0.attn.proj.weight": [-0.069434, -0.079307, -0.006215],
    "blocks.0.mlp.fc1.weight": [0.288712, 0.23167, -0.125024],
    "blocks.0.mlp.act2.weight_numerator": [0.0, 0.5, 0.249997],
    "blocks.0.mlp.fc2.weight": [0.082429, 0.022213, 0.032451],
    "head.weight": [-0.021434, 0.012056, -0.006423],
}
GOLDEN_SIZE = 462.9306


def test_a_seed_gives_the_same_model_from_now_on():
    """Numbers that were drawn once: seeded results in the notebooks depend on them."""
    torch.manual_seed(7)
    model = katlib.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3
    )
    state = model.state_dict()
    drawn = {name: state[name].flatten()[:3].tolist() for name in GOLDEN}
    assert drawn == {name: pytest.approx(values, abs=1e-4) for name, values in GOLDEN.items()}
    sizes = sum(value.double().square().sum().item() for value in state.values())
    assert sizes == pytest.approx(GOLDEN_SIZE, rel=1e-4)
