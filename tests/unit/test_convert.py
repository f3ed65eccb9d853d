"""From ViT to KAT: the same function, nothing shared, what cannot be converted refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.fit import fit_rational, max_error, refit

SMALL = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10, mlp="mlp"
)


def vit(**options):
    return katlib.VisionTransformer(**SMALL | options)


def scale_and_change(model, kat, images):
    with torch.no_grad():
        before, after = model.eval()(images), kat.eval()(images)
    return before.square().mean().sqrt().item(), (after - before).abs().max().item()


@pytest.mark.parametrize("depth", [3, 12])
def test_our_vit_becomes_a_kat_of_the_same_function(depth):
    model = vit(depth=depth)
    images = torch.randn(16, 3, 32, 32)
    kat = katlib.from_vit(model, images)
    scale, change = scale_and_change(model, kat, images)
    assert change < 1e-2 * scale
    report = kat.conversion
    assert report["largest_logit_change"] == pytest.approx(change, rel=1e-3) and report[
        "logit_scale"
    ] == pytest.approx(scale, rel=1e-3)
    assert list(report["layers"]) == [f"blocks.{i}.mlp" for i in range(depth)]
    assert all(
        layer["activation"] == "GELU" and 0 < layer["typical_error"] < layer["max_error"] < 0.1
        for layer in report["layers"].values()
    )
    others = torch.randn(16, 3, 32, 32)  # that the fit has not seen
    scale, change = scale_and_change(model, kat, others)
    assert change < 2e-2 * scale
    assert isinstance(kat, katlib.VisionTransformer) and all(
        isinstance(block.mlp, katlib.GRKANMlp) for block in kat.blocks
    )


def test_the_first_function_is_the_identity_and_the_second_the_activation():
    kat = katlib.from_vit(vit(), degrees=(5, 4), tolerance=0.1)
    x = torch.linspace(-3, 3, 192)
    assert torch.equal(kat.blocks[1].mlp.act1(x[:48]), x[:48])
    assert_close(kat.blocks[1].mlp.act2(x), F.gelu(x), atol=2e-2, rtol=0)
    assert kat.blocks[1].mlp.act2.weight_denominator.shape == (8, 4)


def test_after_training_too(tiny_data):
    """Training makes some of the activations' inputs large; the report says how large, and the function stays."""
    from katlib.train import train
    from katlib.train.data import normalize
    from katlib.train.recipe import Config

    kept = {}
    train(
        Config(patch_size=8, embed_dim=48, depth=2, num_heads=2, batch_size=16, lr=1e-2),
        "mlp",
        epochs=10,
        data=tiny_data,
        progress=False,
        device="cpu",
        on_epoch=lambda model, epoch: kept.update(model=model),
    )
    images = normalize(tiny_data.test_images)
    kat = katlib.from_vit(kept["model"], images)
    scale, change = scale_and_change(kept["model"], kat, images)
    assert change < 1e-2 * scale
    assert max(layer["interval"][1] for layer in kat.conversion["layers"].values()) > 3
    F.cross_entropy(kat.train()(images), tiny_data.test_labels).backward()  # ready to be trained on
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kat.parameters())


def test_nothing_is_shared_and_the_original_is_left_alone():
    model = vit(drop_rate=0.1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kat = katlib.from_vit(model)
    assert (
        kat.training
        and model.training
        and kat.blocks[0].mlp.drop2.p == 0.1
        and kat.blocks[0].mlp.drop1.p == 0
    )
    assert {p.data_ptr() for p in kat.parameters()}.isdisjoint(
        {p.data_ptr() for p in model.parameters()}
    )
    with torch.no_grad():
        for p in kat.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *kat.modules()])


def test_a_timm_vits_image_size_is_found():
    timm = pytest.importorskip("timm")
    kat = katlib.from_vit(
        timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1, in_chans=1),
        degrees=(5, 4),
    )
    assert kat(torch.randn(1, 1, 32, 48)).shape == (1, 1000) and kat.conversion["logit_scale"] > 0.1


def test_the_result_can_be_saved_and_loaded(tmp_path):
    kat = katlib.from_vit(vit(), degrees=(7, 6)).eval()
    katlib.save_pretrained(kat, tmp_path / "kat.safetensors", mean=[0.5] * 3, std=[0.5] * 3)
    again = katlib.load_pretrained(tmp_path / "kat.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert again.pretrained_cfg["architecture"]["degrees"] == [7, 6]
    assert_close(again(x), kat(x), atol=5e-3, rtol=5e-2)


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_tiny_patch16_224", dict(img_size=64)),
        (
            "vit_tiny_patch16_224",
            dict(img_size=64, init_values=1e-5, reg_tokens=4, global_pool="avg", class_token=False),
        ),
        ("deit3_small_patch16_224", dict(img_size=64, depth=4)),
        ("beit_base_patch16_224", dict(img_size=64, depth=2, embed_dim=96, num_heads=3)),
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, act_layer="relu")),
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, act_layer="quick_gelu")),
    ],
)
def test_timms_vits(name, options):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **options)
    if options.get("init_values"):
        for block in model.blocks:
            nn.init.constant_(block.ls1.gamma, 0.3), nn.init.constant_(block.ls2.gamma, 0.3)
    images = torch.randn(16, 3, 64, 64)
    kat = katlib.from_vit(
        model, images, tolerance=0.1 if options.get("act_layer") == "relu" else 1e-2
    )  # a kink is harder to follow
    scale, change = scale_and_change(model, kat, images)
    assert change < (0.1 if options.get("act_layer") == "relu" else 1e-2) * scale
    assert type(kat) is type(model) and kat.pretrained_cfg == model.pretrained_cfg
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
    "name", ["eva02_tiny_patch14_224", "vit_giant_patch14_reg4_dinov2", "vit_base_patch16_xp_224"]
)
def test_timms_gated_and_parallel_vits_are_refused(name):
    timm = pytest.importorskip("timm")
    options = (
        dict(depth=1, embed_dim=48, num_heads=3)
        if "xp" not in name
        else dict(
            depth=1,
            embed_dim=48,
            num_heads=3,
            block_fn=timm.models.vision_transformer.ParallelScalingBlock,
        )
    )
    model = timm.create_model(
        name if "xp" not in name else "vit_tiny_patch16_224",
        img_size=56 if "14" in name else 64,
        **options,
    )
    with pytest.raises(ValueError, match="gated|in one product"):
        katlib.from_vit(model)


def test_a_change_that_is_too_large_is_said():
    model = vit(depth=1)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(30)  # inputs of up to 100, where F cannot follow
    with pytest.warns(
        UserWarning,
        match=r"the logits change by up to .*% of their root mean square, more than the tolerance of 1.0%",
    ):
        report = katlib.from_vit(model, degrees=(3, 2)).conversion
    assert report["relative_change"] > 1e-2 and report["layers"]["blocks.0.mlp"]["interval"][1] > 50


def test_refit_moves_the_error_to_where_no_inputs_are():
    wide = fit_rational("gelu", interval=(-8, 8), rounds=10)
    x = torch.randn(4000, dtype=torch.float64)
    near = refit(wide, "gelu", x)
    error = [math.sqrt((fit(x) - F.gelu(x)).square().mean()) for fit in (wide, near)]
    assert error[1] < 0.75 * error[0] and near.max_error < 0.1
    assert (
        near.max_error == pytest.approx(max_error(near, "gelu", (-8, 8)))
        and (near.denominator >= 0).all()
        and near.interval == (-8.0, 8.0)
    )
