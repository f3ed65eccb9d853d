"""What a KAT is compared with: each kind computes its formula and starts variance-preserving."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import katlib
from katlib.architecture import MLPS, Architecture
from katlib.mlps import ChannelPReLU, SquaredReLU, SwiGLU
from katlib.vit import make_mlp

OTHERS = [mlp for mlp in MLPS if mlp != "grkan"]


def make(mlp: str, embed_dim: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return make_mlp(Architecture(embed_dim=embed_dim, num_heads=2, mlp=mlp, mlp_ratio=3.0))


def test_squared_relu():
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert SquaredReLU()(x).tolist() == [0.0, 0.0, 9.0]


def test_a_prelu_has_a_slope_for_each_channel_of_a_token():
    act = ChannelPReLU(3)
    with torch.no_grad():
        act.weight.copy_(torch.tensor([0.1, 0.2, 0.3]))
    x = torch.full((2, 5, 3), -1.0)
    torch.testing.assert_close(act(x), torch.tensor([-0.1, -0.2, -0.3]).expand(2, 5, 3))


def test_a_prelu_is_that_of_pytorch_with_channels_in_dimension_1():
    x = torch.randn(4, 7, 3)
    ours = ChannelPReLU(3)(x)
    torch.testing.assert_close(ours, nn.PReLU(3)(x.transpose(1, 2)).transpose(1, 2))


def test_a_gated_mlp_is_timms():
    timm_layers = pytest.importorskip("timm.layers")
    ours = SwiGLU(16, 24)
    theirs = timm_layers.SwiGLU(16, 24, norm_layer=None)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    "mlp, function",
    [
        ("mlp", F.gelu),
        ("relu2", lambda x: F.relu(x) ** 2),
        ("prelu", lambda x: F.leaky_relu(x, 0.25)),
    ],
)
def test_an_mlp_is_linear_activation_linear(mlp, function):
    module = make(mlp)
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(module(x), module.fc2(function(module.fc1(x))))


@pytest.mark.parametrize("mlp", OTHERS)
def test_each_starts_variance_preserving(mlp):
    module = make(mlp, 256)
    with torch.no_grad():
        y = module(torch.randn(2000, 256))
    assert y.var().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("mlp", OTHERS)
@pytest.mark.parametrize("remake", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_each_can_be_copied_and_pickled(mlp, remake):
    module = make(mlp)
    x = torch.randn(2, 64)
    assert torch.equal(remake(module)(x), module(x))


@pytest.mark.parametrize("mlp", MLPS)
def test_a_model_of_each_kind_differs_only_in_its_mlps(mlp):
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10)
    torch.manual_seed(3)
    model = katlib.VisionTransformer(**sizes, mlp=mlp)
    torch.manual_seed(3)
    kat = katlib.VisionTransformer(**sizes, mlp="grkan")
    assert {name.split(".mlp.")[0] for name, _ in model.named_parameters() if ".mlp." in name} == {
        "blocks.0",
        "blocks.1",
    }
    assert torch.equal(model.pos_embed, kat.pos_embed)
