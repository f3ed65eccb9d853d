"""From ViT to KAT: the same function, nothing shared, what cannot be converted refused."""

import math

import pytest
import torch
from tiny import draw_tiny
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.fit import fit_rational, max_error, refit
from katlib.train import train
from katlib.train.data import normalize
from katlib.train.recipe import Config

SMALL = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10, mlp="mlp"
)


def vit(**options):
    return katlib.VisionTransformer(**SMALL | options)


def scale_and_change(model, kat, images):
    """The root mean square of the model's logits, and the largest change of one."""
    with torch.no_grad():
        before, after = model.eval()(images), kat.eval()(images)
    return before.square().mean().sqrt().item(), (after - before).abs().max().item()


@pytest.fixture(
    scope="module", params=[3, pytest.param(12, marks=pytest.mark.slow)], ids=lambda n: f"depth {n}"
)
def converted(request):
    """A ViT, the KAT that was made of it, and the images on which its fits were made."""
    torch.manual_seed(0)
    model = vit(depth=request.param)
    images = torch.randn(16, 3, 32, 32)
    return model, katlib.from_vit(model, images), images


class TestOurViT:
    def test_becomes_a_kat_of_the_same_function(self, converted):
        scale, change = scale_and_change(*converted)
        assert change < 1e-2 * scale

    def test_keeps_its_function_on_images_that_the_fit_has_not_seen(self, converted):
        model, kat, _ = converted
        scale, change = scale_and_change(model, kat, torch.randn(16, 3, 32, 32))
        assert change < 2e-2 * scale

    def test_is_told_how_far_the_logits_changed(self, converted):
        _, kat, _ = converted
        scale, change = scale_and_change(*converted)
        assert kat.conversion["largest_logit_change"] == pytest.approx(change, rel=1e-3)
        assert kat.conversion["logit_scale"] == pytest.approx(scale, rel=1e-3)

    def test_is_told_how_good_each_fit_is(self, converted):
        model, kat, _ = converted
        layers = kat.conversion["layers"]
        assert list(layers) == [f"blocks.{i}.mlp" for i in range(len(model.blocks))]
        for layer in layers.values():
            assert layer["activation"] == "GELU"
            assert 0 < layer["typical_error"] < layer["max_error"] < 0.1

    def test_has_gr_kan_layers_in_all_blocks(self, converted):
        _, kat, _ = converted
        assert isinstance(kat, katlib.VisionTransformer)
        assert all(isinstance(block.mlp, katlib.GRKANMlp) for block in kat.blocks)

    def test_describes_itself_as_a_kat(self, converted):
        model, kat, _ = converted
        assert model.architecture.mlp == "mlp"
        assert kat.architecture.mlp == "grkan"
        assert kat.architecture.degrees == kat.conversion["degrees"]
        assert kat.architecture.parameters == sum(p.numel() for p in kat.parameters())


def test_pretrained_cfg_describes_the_kat():
    model = vit()
    model.pretrained_cfg = {"std": (1.0,), "architecture": model.architecture.as_json()}
    kat = katlib.from_vit(model, degrees=(5, 4), tolerance=0.5)
    assert kat.pretrained_cfg["architecture"]["mlp"] == "grkan"
    assert kat.pretrained_cfg["std"] == (1.0,)
    assert model.pretrained_cfg["architecture"]["mlp"] == "mlp"


@pytest.fixture(scope="module")
def mlp():
    """An MLP of a converted model."""
    torch.manual_seed(0)
    return katlib.from_vit(vit(), degrees=(5, 4), tolerance=0.1).blocks[1].mlp


class TestTheFunctions:
    def test_the_first_is_the_identity(self, mlp):
        x = torch.linspace(-3, 3, 48)
        assert torch.equal(mlp.act1(x), x)

    def test_the_second_is_the_activation(self, mlp):
        x = torch.linspace(-3, 3, 192)
        assert_close(mlp.act2(x), F.gelu(x), atol=2e-2, rtol=0)

    def test_they_have_groups(self, mlp):
        assert mlp.act2.weight_denominator.shape == (8, 4)


@pytest.fixture(scope="module")
def trained():
    """A ViT some of whose activations have large inputs after training, and its data."""
    torch.manual_seed(0)
    data = draw_tiny()
    kept = {}
    train(
        Config().replace(patch_size=8, embed_dim=48, depth=2, num_heads=2, batch_size=16, lr=1e-2),
        "mlp",
        epochs=10,
        data=data,
        progress=False,
        device="cpu",
        on_epoch=lambda model, epoch: kept.update(model=model),
    )
    images = normalize(data.test_images)
    return kept["model"], katlib.from_vit(kept["model"], images), images, data.test_labels


@pytest.mark.slow
class TestATrainedViT:
    def test_keeps_its_function(self, trained):
        model, kat, images, _ = trained
        scale, change = scale_and_change(model, kat, images)
        assert change < 1e-2 * scale

    def test_is_told_how_large_its_activations_inputs_are(self, trained):
        layers = trained[1].conversion["layers"].values()
        assert max(layer["interval"][1] for layer in layers) > 3

    def test_is_ready_to_be_trained_on(self, trained):
        _, kat, images, labels = trained
        F.cross_entropy(kat.train()(images), labels).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kat.parameters())


@pytest.fixture(scope="module")
def model():
    return vit(drop_rate=0.1).train()


@pytest.fixture(scope="module")
def kat(model):
    return katlib.from_vit(model, degrees=(5, 4), tolerance=0.1)


class TestTheOriginal:
    def test_and_the_result_are_in_the_same_mode(self, model, kat):
        assert kat.training
        assert model.training

    def test_hands_on_the_dropout_after_its_activation(self, kat):
        assert kat.blocks[0].mlp.drop2.p == 0.1
        assert kat.blocks[0].mlp.drop1.p == 0

    def test_shares_no_parameters_with_the_result(self, model, kat):
        ours = {p.data_ptr() for p in kat.parameters()}
        assert ours.isdisjoint({p.data_ptr() for p in model.parameters()})

    def test_is_left_alone(self, model):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        kat = katlib.from_vit(model, degrees=(5, 4), tolerance=0.1)
        with torch.no_grad():
            for p in kat.parameters():
                p.zero_()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_and_the_result_keep_no_hooks(self, model, kat):
        modules = [*model.modules(), *kat.modules()]
        assert not any(module._forward_pre_hooks for module in modules)


def test_a_timm_vits_image_size_is_found():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1, in_chans=1)
    kat = katlib.from_vit(model, degrees=(5, 4))
    assert kat(torch.randn(1, 1, 32, 48)).shape == (1, 1000)
    assert kat.conversion["logit_scale"] > 0.1


@pytest.mark.slow
def test_the_result_can_be_saved_and_loaded(tmp_path):
    kat = katlib.from_vit(vit(), degrees=(7, 6)).eval()
    katlib.save_pretrained(kat, tmp_path / "kat.safetensors", mean=[0.5] * 3, std=[0.5] * 3)
    again = katlib.load_pretrained(tmp_path / "kat.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert again.pretrained_cfg["architecture"]["degrees"] == [7, 6]
    assert_close(again(x), kat(x), atol=5e-3, rtol=5e-2)


PLAIN_TIMM = dict(img_size=64, init_values=1e-5, reg_tokens=4, global_pool="avg", class_token=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options, tolerance",
    [
        ("vit_tiny_patch16_224", dict(img_size=64), 1e-2),
        ("vit_tiny_patch16_224", PLAIN_TIMM, 1e-2),
        ("deit3_small_patch16_224", dict(img_size=64, depth=4), 1e-2),
        ("beit_base_patch16_224", dict(img_size=64, depth=2, embed_dim=96, num_heads=3), 1e-2),
        # a corner is harder to follow
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, act_layer="relu"), 0.1),
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, act_layer="quick_gelu"), 1e-2),
    ],
)
def test_timms_vits_become_kats_of_the_same_function(name, options, tolerance):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **options)
    if options.get("init_values"):
        for block in model.blocks:
            nn.init.constant_(block.ls1.gamma, 0.3)
            nn.init.constant_(block.ls2.gamma, 0.3)
    images = torch.randn(16, 3, 64, 64)
    kat = katlib.from_vit(model, images, tolerance=tolerance)
    scale, change = scale_and_change(model, kat, images)
    assert change < tolerance * scale
    assert type(kat) is type(model)
    assert kat.pretrained_cfg == model.pretrained_cfg
    assert sum(isinstance(module, katlib.GRKANMlp) for module in kat.modules()) == len(model.blocks)


class Block(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def linears(**options):
    return dict(fc1=nn.Linear(8, 16), act=nn.GELU(), fc2=nn.Linear(16, 8)) | options


@pytest.mark.parametrize(
    "model, words",
    [
        (
            lambda: nn.Sequential(Block(**linears(fc1=nn.Linear(8, 32), act=nn.GLU()))),
            "0 .Block. is gated: fc1 makes 32 numbers and fc2 takes 16",
        ),
        (
            lambda: nn.Sequential(
                Block(
                    fc1_g=nn.Linear(8, 16),
                    fc1_x=nn.Linear(8, 16),
                    act=nn.SiLU(),
                    fc2=nn.Linear(16, 8),
                )
            ),
            "gated: the product of two branches",
        ),
        (
            lambda: Block(**linears(norm=nn.LayerNorm(16))),
            "the model .Block. has more than linear maps and an activation: norm",
        ),
        (
            lambda: Block(**linears(fc1=nn.Conv2d(8, 16, 1))),
            "Conv2d and Linear; fc1 and fc2 must be linear maps",
        ),
        (
            lambda: Block(**linears(act=nn.PReLU())),
            "activation PReLU; it must be a function without parameters",
        ),
        (lambda: Block(**linears(act=nn.Softmax(-1))), "activation Softmax, which mixes channels"),
        (lambda: Block(**linears(act=nn.GLU())), "activation GLU, which mixes channels"),
        (
            lambda: Block(fc1=nn.Linear(8, 16), fc2=nn.Linear(16, 8)),
            "activation NoneType; it must be a function without parameters",
        ),
        (
            lambda: Block(in_proj=nn.Linear(8, 8), mlp_act=nn.GELU()),
            "attention and MLP in one product",
        ),
        (lambda: vit(mlp="grkan"), "is a GR-KAN already"),
        (lambda: nn.Linear(8, 8), "Linear has no MLP made of fc1, act and fc2"),
        (lambda: vit(embed_dim=36, mlp_ratio=1.0), "groups=8 does not divide channels=36"),
        (lambda: nn.Sequential(Block(**linears())), "does not say what size of images it takes"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        katlib.from_vit(model())


@pytest.mark.parametrize(
    "name, options",
    [
        ("eva02_tiny_patch14_224", dict(img_size=56)),
        ("vit_giant_patch14_reg4_dinov2", dict(img_size=56)),
        ("vit_tiny_patch16_224", dict(img_size=64, block_fn="ParallelScalingBlock")),
    ],
)
def test_timms_gated_and_parallel_vits_are_refused(name, options):
    timm = pytest.importorskip("timm")
    if "block_fn" in options:
        block = getattr(timm.models.vision_transformer, options["block_fn"])
        options = options | {"block_fn": block}
    model = timm.create_model(name, depth=1, embed_dim=48, num_heads=3, **options)
    with pytest.raises(ValueError, match=r"gated|in one product"):
        katlib.from_vit(model)


def test_an_exception_in_the_model_is_passed_on():
    with pytest.raises(ValueError, match="images have shape"):
        katlib.from_vit(vit(depth=1), torch.randn(16, 3, 16, 16))


def test_a_change_that_is_too_large_is_said():
    model = vit(depth=1)
    with torch.no_grad():
        # inputs of up to 100, where F cannot follow
        model.blocks[0].mlp.fc1.weight.mul_(30)
    words = (
        r"the logits change by up to .*% of their root mean square, more than the tolerance of 1.0%"
    )
    with pytest.warns(UserWarning, match=words):
        report = katlib.from_vit(model, degrees=(3, 2)).conversion
    assert report["relative_change"] > 1e-2
    assert report["layers"]["blocks.0.mlp"]["interval"][1] > 50


@pytest.fixture(scope="module")
def wide():
    return fit_rational("gelu", interval=(-8, 8), rounds=10)


@pytest.fixture
def samples():
    return torch.randn(4000, dtype=torch.float64)


class TestRefit:
    def test_moves_the_error_to_where_no_inputs_are(self, wide, samples):
        near = refit(wide, "gelu", samples)
        before, after = (
            math.sqrt((fit(samples) - F.gelu(samples)).square().mean()) for fit in (wide, near)
        )
        assert after < 0.75 * before
        assert near.max_error < 0.1

    def test_measures_its_largest_error_on_the_whole_interval(self, wide, samples):
        near = refit(wide, "gelu", samples)
        assert near.max_error == pytest.approx(max_error(near, "gelu", (-8, 8)))
        assert (near.denominator >= 0).all()
        assert near.interval == (-8.0, 8.0)
