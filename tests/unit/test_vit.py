"""The Vision Transformer and KAT: names, shapes, twins, gradients, drop path."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.architecture import Architecture
from katlib.vit import DropPath

# names and shapes of the released KAT-T's parameters
KAT_TINY = Path(__file__).parent / "kat_tiny_keys.json"
SMALL = dict(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=10)


def test_names_and_shapes_are_the_released_kat_tinys():
    model = katlib.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=1000
    )
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    assert shapes == json.loads(KAT_TINY.read_text())


def test_twins_start_equal_outside_their_mlps():
    states = []
    for mlp in ("grkan", "mlp"):
        torch.manual_seed(3)
        state = katlib.VisionTransformer(**SMALL, mlp=mlp).state_dict()
        states.append({name: value for name, value in state.items() if ".mlp." not in name})
    kat, twin = states
    assert list(kat) == list(twin)
    assert len(kat) > 20
    assert all(torch.equal(kat[name], twin[name]) for name in kat)


def test_every_parameter_gets_a_gradient():
    model = katlib.VisionTransformer(
        **SMALL, groups=4, numerator_groups=2, drop_path_rate=0.1, drop_rate=0.1
    )
    F.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10).backward()
    parameters = model.named_parameters()
    without = [name for name, p in parameters if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="must be"):
        katlib.VisionTransformer(**SMALL)(torch.randn(1, 3, 16, 16))


def test_a_model_knows_its_architecture():
    model = katlib.VisionTransformer(**SMALL, groups=4)
    assert model.architecture == Architecture(**SMALL, groups=4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(img_size=30, patch_size=16), "patch_size=16 does not divide img_size=30"),
        (dict(img_size=32, embed_dim=10, num_heads=3), "num_heads=3 does not divide"),
        (dict(img_size=32, mlp="kan", depth=1), "allowed are 'grkan' and 'mlp'"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, words):
    with pytest.raises(ValueError, match=words):
        katlib.VisionTransformer(**arguments)


def test_a_kind_of_mlp_without_a_case_is_an_error(monkeypatch):
    """Not a GR-KAN under another name."""
    monkeypatch.setattr("katlib.architecture.MLPS", ("grkan", "mlp", "new"))
    with pytest.raises(NotImplementedError, match="mlp='new' has no case"):
        katlib.VisionTransformer(**SMALL, mlp="new")


def test_drop_path_keeps_the_mean():
    y = DropPath(0.25)(torch.ones(20_000, 2, 3))
    assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)


def test_drop_path_drops_whole_samples():
    y = DropPath(0.25)(torch.ones(2000, 2, 3)).flatten(1)
    assert (y.amax(1) == y.amin(1)).all()


def test_drop_path_does_nothing_in_evaluation():
    x = torch.ones(20, 2, 3)
    assert torch.equal(DropPath(0.25).eval()(x), x)
