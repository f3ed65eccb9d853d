"""Trained weights: released names and shapes, other programs' files, our own format, and files that
must be refused."""

import argparse
import http.server
import json
import os
import pickle
import random
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import draw_tiny
from torch import nn
from torch.testing import assert_close

import katlib
from katlib import files, hub, pretrained
from katlib.architecture import KAT_BASE, KAT_SMALL, KAT_TINY, Architecture
from katlib.images import CLASSES, MEAN, STD
from katlib.train import train
from katlib.train.recipe import Config
from katlib.weight_files import architecture_of

# names and shapes of the released KAT-T's parameters
RELEASED = json.loads((Path(__file__).parent / "kat_tiny_keys.json").read_text())
SMALL = dict(
    img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, groups=4
)
HALF = dict(mean=[0.5] * 3, std=[0.5] * 3)


@pytest.fixture
def kat():
    """A small KAT whose weights are away from where all models start."""
    model = katlib.VisionTransformer(**SMALL).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def released():
    """A state dict like the released KAT-T's: its names and shapes, other numbers."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: 0.02 * torch.randn(shape, generator=generator) for name, shape in RELEASED.items()
    }


def is_same(model, state):
    loaded = model.state_dict()
    return loaded.keys() == state.keys() and all(
        torch.equal(loaded[name], state[name]) for name in state
    )


def shapes(model):
    return {name: p.shape for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def model(released, tmp_path_factory):
    """The model of a file like the released KAT-T's."""
    path = tmp_path_factory.mktemp("released") / "model.safetensors"
    save_file(released, path)
    with pytest.warns(UserWarning, match="taken for that, with num_heads=3"):
        return katlib.load_pretrained(path)


class TestAFileOfTheReleasedNamesAndShapes:
    def test_loads_strictly(self, model, released):
        assert is_same(model, released)

    def test_is_a_kat_t_in_evaluation_mode(self, model):
        assert sum(p.numel() for p in model.parameters()) == 5_718_328
        assert model.blocks[0].attn.num_heads == 3
        assert not model.training

    def test_is_for_imagenets_images(self, model):
        cfg = model.pretrained_cfg
        assert cfg["mean"] == (0.485, 0.456, 0.406)
        assert cfg["std"] == (0.229, 0.224, 0.225)
        assert cfg["crop_pct"] == 0.875

    def test_says_its_input_and_outputs(self, model):
        assert model.pretrained_cfg["input_size"] == (3, 224, 224)
        assert model.pretrained_cfg["num_classes"] == 1000

    def test_says_the_arguments_of_its_model(self, model):
        arguments = model.pretrained_cfg["architecture"] | {"depth": 1}
        assert katlib.VisionTransformer(**arguments).pos_embed.shape == (1, 197, 192)

    def test_computes(self, model):
        assert model(torch.randn(1, 3, 224, 224)).isfinite().all()


def timms_checkpoint(state):
    arguments = argparse.Namespace(lr=1e-3)
    return {"state_dict": state, "epoch": 3, "args": arguments, "optimizer": {"state": {}}}


def with_average(state):
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"state_dict": zeros, "state_dict_ema": state}


def with_flashkats_names(state):
    return {
        name.replace("weight_numerator", "numerator_v").replace(
            "weight_denominator", "denominator_v"
        ): value
        for name, value in state.items()
    }


WRAPPINGS = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state},
    "timm's checkpoint": timms_checkpoint,
    "averaged weights": with_average,
    "DDP": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "FlashKAT": with_flashkats_names,
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_pytorch_files_load_in_all_their_wrappings(kat, tmp_path, wrapping):
    state = kat.state_dict()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "kat.pth")
    assert is_same(katlib.load_pretrained(tmp_path / "kat.pth", num_heads=2), state)


class TestOurOwnFormat:
    @pytest.fixture
    def path(self, kat, tmp_path):
        path = tmp_path / "kat.safetensors"
        katlib.save_pretrained(
            kat,
            path,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            classes=[f"class {i}" for i in range(10)],
            test_accuracy=0.5,
        )
        return path

    def test_has_the_architecture_and_the_metadata_in_its_header(self, path):
        with safe_open(path, "pt") as file:
            header = file.metadata()
        assert json.loads(header["architecture"])["groups"] == 4
        assert json.loads(header["mean"]) == [0.1, 0.2, 0.3]
        assert header["test_accuracy"] == "0.5"

    def test_has_the_header_keys_that_it_always_had(self, path):
        with safe_open(path, "pt") as file:
            keys = file.metadata().keys() - {"test_accuracy"}
        assert keys - {"probe"} == {"architecture", "mean", "std", "classes", "crop_pct"}

    def test_keeps_only_the_coefficients_in_float32(self, path):
        with safe_open(path, "pt") as file:
            dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        assert all((dtype == torch.float32) == ("act" in name) for name, dtype in dtypes.items())

    def test_is_half_as_large(self, path, kat):
        parameters = sum(p.numel() for p in kat.parameters())
        assert path.stat().st_size < 0.6 * 4 * parameters

    def test_is_loaded_in_float32(self, path):
        model = katlib.load_pretrained(path)
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    def test_brings_back_the_classes_and_the_images(self, path):
        cfg = katlib.load_pretrained(path).pretrained_cfg
        assert cfg["classes"][3] == "class 3"
        assert cfg["std"] == (0.4, 0.5, 0.6)
        assert cfg["input_size"] == (3, 32, 32)
        # the whole image, not ImageNet's 87.5% of it
        assert cfg["crop_pct"] == 1.0

    def test_brings_back_the_function(self, path, kat):
        model = katlib.load_pretrained(path)
        x = torch.randn(4, 3, 32, 32)
        assert model.blocks[0].attn.num_heads == 2
        assert_close(model(x), kat(x), atol=5e-3, rtol=5e-3)

    def test_can_be_saved_again_without_saying_mean_and_std(self, path, tmp_path):
        model = katlib.load_pretrained(path)
        katlib.save_pretrained(model, tmp_path / "again.safetensors")
        again = katlib.load_pretrained(tmp_path / "again.safetensors")
        assert is_same(again, model.state_dict())
        assert again.pretrained_cfg["classes"][3] == "class 3"

    def test_leaves_no_other_file(self, path, tmp_path):
        katlib.save_pretrained(katlib.load_pretrained(path), tmp_path / "again.safetensors")
        assert sorted(os.listdir(tmp_path)) == ["again.safetensors", "kat.safetensors"]


@pytest.mark.parametrize(
    "options",
    [
        dict(mlp="mlp"),
        dict(degrees=(3, 2)),
        dict(numerator_groups=4, mlp_ratio=3.0),
        dict(degrees=(2, 1), act_init=[([0.0, 1.0, 0.1], [0.1])] * 2),
        dict(in_chans=1, patch_size=4),
        dict(groups=None, numerator_groups=None),
        # hidden / embed_dim is rounded so that it gives one hidden feature less
        dict(embed_dim=28, mlp_ratio=244.5 / 28),
        dict(stem="conv", global_pool="seq"),
        dict(stem="conv", patch_size=2, in_chans=1),
        dict(mlp="swiglu", mlp_ratio=3.1),
        dict(mlp="relu2"),
        dict(mlp="prelu"),
    ],
    ids=str,
)
class TestEveryArchitecture:
    def test_is_saved_and_loaded(self, options, tmp_path):
        model = katlib.VisionTransformer(**SMALL | options)
        katlib.save_pretrained(model, tmp_path / "x.safetensors", **HALF)
        again = katlib.load_pretrained(tmp_path / "x.safetensors")
        assert shapes(again) == shapes(model)
        # the arguments are whole
        katlib.VisionTransformer(**again.pretrained_cfg["architecture"])

    def test_is_read_off_its_tensors(self, options):
        model = katlib.VisionTransformer(**SMALL | options)
        given = {"num_heads": 2}
        if options.get("mlp") in ("mlp", "relu2"):
            given["mlp"] = options["mlp"]
        architecture = architecture_of(model.state_dict(), given)
        assert isinstance(architecture, Architecture)
        assert shapes(katlib.VisionTransformer(**architecture.as_dict())) == shapes(model)


def test_a_start_that_was_fitted_is_saved_as_its_coefficients(tmp_path):
    fit = katlib.fit_rational(torch.sin, (3, 3), rounds=1)
    model = katlib.VisionTransformer(**SMALL | dict(degrees=(3, 3), act_init=("identity", fit)))
    katlib.save_pretrained(model, tmp_path / "x.safetensors", **HALF)
    again = katlib.load_pretrained(tmp_path / "x.safetensors")
    start = again.pretrained_cfg["architecture"]["act_init"][1]
    assert [len(coefficients) for coefficients in start] == [4, 3]
    assert shapes(again) == shapes(model)


def test_a_model_with_another_head_than_it_was_built_with_is_saved_as_it_is(kat, tmp_path):
    kat.head = nn.Linear(32, 3)
    katlib.save_pretrained(kat, tmp_path / "x.safetensors", **HALF)
    again = katlib.load_pretrained(tmp_path / "x.safetensors")
    assert again.pretrained_cfg["num_classes"] == 3
    assert again.blocks[0].attn.num_heads == 2


def test_files_whose_header_does_not_say_everything_still_load(kat, tmp_path):
    """Headers of the first version had neither starts nor drop rates."""
    arguments = SMALL | dict(in_chans=3, mlp_ratio=4.0, mlp="grkan", degrees=[5, 4])
    header = {"architecture": json.dumps(arguments), "mean": "[0.5]", "std": "[0.5]"}
    save_file(kat.state_dict(), tmp_path / "x.safetensors", header)
    model = katlib.load_pretrained(tmp_path / "x.safetensors")
    assert is_same(model, kat.state_dict())
    assert arguments.items() <= model.pretrained_cfg["architecture"].items()


def resampled_by_timm(position, side):
    layers = pytest.importorskip("timm.layers")
    return layers.resample_abs_pos_embed(position, [side, side])


class TestForOtherImagesAndClasses:
    @pytest.fixture
    def path(self, kat, tmp_path):
        path = tmp_path / "kat.safetensors"
        katlib.save_pretrained(kat, path, **HALF, classes=[f"class {i}" for i in range(10)])
        return path

    def test_another_number_of_classes_is_a_new_head(self, path):
        model = katlib.load_pretrained(path, num_classes=3)
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        assert model.pretrained_cfg["num_classes"] == model.architecture.num_classes == 3
        assert "classes" not in model.pretrained_cfg

    def test_all_but_the_head_is_the_files(self, path):
        old, new = katlib.load_pretrained(path), katlib.load_pretrained(path, num_classes=3)
        new.head = old.head
        assert is_same(new, old.state_dict())

    def test_a_new_head_is_drawn_by_the_global_generator(self, path):
        heads = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            heads.append(katlib.load_pretrained(path, num_classes=300).head.weight)
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert heads[0].std().item() == pytest.approx(0.02, rel=0.05)

    def test_the_files_number_of_classes_keeps_its_head(self, path):
        model = katlib.load_pretrained(path, num_classes=10, img_size=32)
        assert is_same(model, katlib.load_pretrained(path).state_dict())
        assert model.pretrained_cfg["classes"][3] == "class 3"

    @pytest.mark.parametrize("size", [16, 40, 64])
    def test_another_image_size_resamples_the_positions_as_timm_does(self, path, size):
        old, new = katlib.load_pretrained(path), katlib.load_pretrained(path, img_size=size)
        expected = resampled_by_timm(old.pos_embed.detach(), size // 8)
        assert_close(new.pos_embed.detach(), expected, atol=0, rtol=0)
        assert new.pretrained_cfg["input_size"] == (3, size, size)
        assert new(torch.randn(1, 3, size, size)).shape == (1, 10)

    def test_both_can_be_asked_for_of_a_file_of_weights_alone(self, kat, tmp_path):
        torch.save(kat.state_dict(), tmp_path / "x.pth")
        model = katlib.load_pretrained(tmp_path / "x.pth", num_heads=2, num_classes=3, img_size=64)
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)

    @torch.no_grad()
    def test_such_a_model_can_be_trained_and_saved(self, path, tmp_path):
        model = katlib.load_pretrained(path, num_classes=3, img_size=64)
        assert all(p.requires_grad for p in model.parameters())
        katlib.save_pretrained(model, tmp_path / "x.safetensors", classes=["a", "b", "c"])
        again = katlib.load_pretrained(tmp_path / "x.safetensors")
        x = torch.randn(1, 3, 64, 64)
        assert_close(again(x), model(x), atol=5e-3, rtol=5e-3)

    @pytest.mark.parametrize(
        "asked, words",
        [
            (dict(num_classes=0), "num_classes=0; allowed are"),
            (dict(num_classes=2.0), "num_classes=2.0; allowed are"),
            (dict(img_size=33), "patch_size=8 does not divide img_size=33"),
            (dict(img_size=(64, 64)), r"img_size=\(64, 64\); allowed are"),
        ],
        ids=str,
    )
    def test_impossible_ones_are_refused(self, path, asked, words):
        with pytest.raises(ValueError, match=words):
            katlib.load_pretrained(path, **asked)

    @pytest.mark.parametrize(
        "options", [dict(stem="conv"), dict(global_pool="seq"), dict(mlp="swiglu")], ids=str
    )
    def test_every_architecture_can_be_adapted(self, options, tmp_path):
        model = katlib.VisionTransformer(**SMALL | options)
        katlib.save_pretrained(model, tmp_path / "x.safetensors", **HALF)
        new = katlib.load_pretrained(tmp_path / "x.safetensors", num_classes=3, img_size=48)
        assert new(torch.randn(1, 3, 48, 48)).shape == (1, 3)


@pytest.fixture(scope="module", params=[0.0, 0.9], ids=["weights", "averaged weights"])
def trained(request, tmp_path_factory):
    """The weights that training evaluated last, and the model of its checkpoint."""
    out = tmp_path_factory.mktemp("train")
    weights = {}
    train(
        Config(ema=request.param).replace(patch_size=8, embed_dim=24, depth=2, num_heads=3),
        epochs=1,
        data=draw_tiny(),
        progress=False,
        device="cpu",
        out=out,
        on_epoch=lambda model, epoch: weights.update(model.state_dict()),
    )
    return weights, katlib.load_pretrained(out / "checkpoint.safetensors")


class TestACheckpointOfOurTraining:
    def test_loads_what_training_evaluates(self, trained):
        weights, model = trained
        assert is_same(model, weights)

    def test_says_its_heads(self, trained):
        assert trained[1].blocks[0].attn.num_heads == 3

    def test_is_for_the_images_of_cifar_10(self, trained):
        cfg = trained[1].pretrained_cfg
        assert cfg["mean"] == MEAN
        assert cfg["classes"][0] == "airplane"


def test_a_checkpoint_of_training_that_does_not_say_its_heads_is_refused(kat, tmp_path):
    state = {f"model.{name}": value for name, value in kat.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors", {"state": '{"run": 3}'})
    with pytest.raises(ValueError, match="does not say num_heads"):
        katlib.load_pretrained(tmp_path / "x.safetensors")


def test_a_model_of_ours_that_is_not_installed_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(pretrained.OURS, "kat-cifar10", tmp_path / "kat-cifar10.safetensors")
    with pytest.raises(FileNotFoundError, match="not in this installation"):
        katlib.load_pretrained("kat-cifar10")


def test_a_model_of_ours_is_loaded_by_its_name(kat, tmp_path, monkeypatch):
    path = tmp_path / "kat-cifar10.safetensors"
    monkeypatch.setitem(pretrained.OURS, "kat-cifar10", path)
    katlib.save_pretrained(kat, path, mean=MEAN, std=STD, classes=CLASSES)
    model = katlib.load_pretrained("kat-cifar10")
    assert model.pretrained_cfg["source"] == "kat-cifar10"
    assert model.pretrained_cfg["classes"][9] == "truck"


class TestSavingRefuses:
    @pytest.fixture(autouse=True)
    def writes_nothing(self, tmp_path):
        yield
        assert not list(tmp_path.iterdir())

    def test_a_model_without_mean_and_std(self, kat, tmp_path):
        with pytest.raises(ValueError, match="mean and std"):
            katlib.save_pretrained(kat, tmp_path / "x.safetensors")

    def test_names_of_another_number_than_the_outputs(self, kat, tmp_path):
        with pytest.raises(ValueError, match="3 classes are named; the model has 10"):
            katlib.save_pretrained(kat, tmp_path / "x.safetensors", **HALF, classes="abc")

    def test_weights_that_float16_cannot_hold(self, kat, tmp_path):
        with torch.no_grad():
            kat.blocks[1].norm1.weight[0] = 1e5
        with pytest.raises(ValueError, match=r"blocks.1.norm1.weight .*65504"):
            katlib.save_pretrained(kat, tmp_path / "x.safetensors", **HALF)

    def test_metadata_that_json_cannot_say(self, kat, tmp_path):
        with pytest.raises(TypeError, match="JSON"):
            katlib.save_pretrained(kat, tmp_path / "x.safetensors", **HALF, note=object())


class TestAPickleThatWouldRunCode:
    @pytest.fixture
    def evil(self, tmp_path):
        path = tmp_path / "it_ran"

        class Malicious:
            def __reduce__(self):
                return os.system, (f"touch {path}",)

        yield Malicious()
        assert not path.exists()

    def test_is_refused_in_pytorchs_format(self, kat, evil, tmp_path):
        torch.save(kat.state_dict() | {"x": evil}, tmp_path / "kat.pth")
        with pytest.raises(ValueError, match=r"would run posix.system.*It was not read"):
            katlib.load_pretrained(tmp_path / "kat.pth")

    def test_is_refused_in_pythons_format(self, evil, tmp_path):
        (tmp_path / "old.pth").write_bytes(pickle.dumps({"x": evil}, protocol=2))
        with pytest.raises(ValueError, match=r"would run posix.system.*It was not read"):
            katlib.load_pretrained(tmp_path / "old.pth")


def damaged_copies(content):
    """Cut short, cut in front, foreign, and with wrong bytes in the header."""
    half = len(content) // 2
    yield from (b"", b"x" * 1000, content[:100], content[:half], content[:-1], content[half:])
    draw = random.Random(0)
    for _ in range(40):
        wrong = bytearray(content)
        for _ in range(20):
            wrong[draw.randrange(300)] = draw.randrange(256)
        yield bytes(wrong)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_refused_with_a_message(kat, tmp_path, suffix):
    """Always by a ValueError that names the file, never by another error."""
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        katlib.save_pretrained(kat, whole, **HALF)
    else:
        torch.save(kat.state_dict(), whole)
    path = tmp_path / f"damaged{suffix}"
    refused = 0
    for content in damaged_copies(whole.read_bytes()):
        path.write_bytes(content)
        try:
            katlib.load_pretrained(path, num_heads=2)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 40


def test_a_file_that_may_not_be_read_is_not_called_damaged(kat, tmp_path, monkeypatch):
    def forbidden(*arguments, **options):
        raise PermissionError("Permission denied")

    torch.save(kat.state_dict(), tmp_path / "kat.pth")
    monkeypatch.setattr(torch, "load", forbidden)
    with pytest.raises(PermissionError):
        katlib.load_pretrained(tmp_path / "kat.pth")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"blocks.3.mlp.fc1.bias": torch.zeros(767)},
            r"1 tensors have another shape .blocks.3.mlp.fc1.bias .767,. for .768,..",
        ),
        ({"blocks.11.norm2.bias": None}, r"1 are missing .blocks.11.norm2.bias."),
        (
            {"reg": torch.zeros(1), "reg2": torch.zeros(1)},
            r"2 are not of this model .reg, reg2.",
        ),
        (
            {f"reg{i}": torch.zeros(1) for i in range(3)},
            r"3 are not of this model .reg0, reg1, \.\.\.",
        ),
        (
            {"norm.weight": torch.full((192,), float("nan"))},
            "not finite in 1 tensors, norm.weight",
        ),
        (
            {"pos_embed": torch.zeros(1, 0, 192)},
            "no Vision Transformer that katlib knows",
        ),
        (
            {"pos_embed": torch.zeros(1, 1, 192)},
            "asks for a model that cannot be built: img_size=0",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(released, tmp_path, change, words):
    state = {name: value for name, value in (released | change).items() if value is not None}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words) as caught:
        katlib.load_pretrained(tmp_path / "x.safetensors", num_heads=3)
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"no Vision Transformer that katlib knows.*begin with conv1.weight"
    ):
        katlib.load_pretrained(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"model": 3}, {}, torch.zeros(2), {1: torch.zeros(2)}],
    ids=["list", "number", "nothing", "tensor", "numbered"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        katlib.load_pretrained(tmp_path / "x.pth")


def test_heads_that_do_not_divide_the_width_are_refused(kat, tmp_path):
    torch.save(kat.state_dict(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth asks .* num_heads=5 does not divide embed_dim=32"):
        katlib.load_pretrained(tmp_path / "x.pth", num_heads=5)


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(depth=10**7), "depth=10000000; allowed are whole numbers, 1 to 1000"),
        (dict(embed_dim=128_000), r"parameters; allowed are"),
        (dict(embed_dim=10**400), "cannot be built"),
        (dict(patch_size=0), "patch_size=0; allowed are whole numbers, 1 to"),
        (dict(depth="12"), "depth='12'; allowed are whole numbers"),
        (dict(depth=True), "depth=True; allowed are whole numbers"),
        (dict(mlp_ratio=1e308), "cannot be built"),
        (dict(degrees=[30_000, 4]), "init='swish' is fitted for degrees"),
        (dict(degrees=[30_000, 4], act_init=["identity"] * 2), "have another shape"),
        (dict(degrees=[5]), "allowed are pairs"),
        (dict(act_init=["identity", "nope"]), "init='nope' is not known"),
        (dict(act_init=[5, {}]), "cannot be built"),
        (dict(act_init=[None, None]), "cannot be built"),
        (dict(width=3), "'width'.* are not known"),
        (dict(depth=1000), "it holds 2 blocks for 1000"),
        (None, "an architecture is a dictionary"),
        ([3], "an architecture is a dictionary"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_asks_for_the_impossible_is_refused_at_once(kat, tmp_path, asked, words):
    """In one sentence, in less than a second, and before memory is taken for a model."""
    architecture = SMALL | asked if isinstance(asked, dict) else asked or "a string"
    header = {"architecture": json.dumps(architecture), "mean": "[0.5]", "std": "[0.5]"}
    save_file(kat.state_dict(), tmp_path / "x.safetensors", header)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=words) as caught:
        katlib.load_pretrained(tmp_path / "x.safetensors")
    assert time.perf_counter() - start < 1
    assert "\n" not in str(caught.value)
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("mean", ["0.5", '"half"', '["a", "b"]'])
def test_a_header_whose_mean_is_no_list_of_numbers_is_refused(kat, tmp_path, mean):
    header = {"architecture": json.dumps(SMALL), "mean": mean, "std": "[0.5]"}
    save_file(kat.state_dict(), tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=r"x.safetensors says mean=.* a number for each channel"):
        katlib.load_pretrained(tmp_path / "x.safetensors")


def test_an_unknown_name_says_which_are_known():
    words = (
        "'kat_huge' is neither a file nor a name that is known .kat_tiny_patch16_224, "
        r"kat_tiny_patch16_224.vitft.*kat-cifar10"
    )
    with pytest.raises(FileNotFoundError, match=words):
        katlib.load_pretrained("kat_huge")


def test_six_models_are_released():
    assert len(hub.RELEASED) == 6
    repository = hub.repository("kat_base_patch16_224.vitft")
    assert repository == "adamdad/kat_base_patch16_224.vitft"


@pytest.mark.parametrize("tag", ["", ".vitft"])
def test_the_released_models_have_three_sizes(tag):
    sizes = [hub.RELEASED[f"kat_{size}_patch16_224{tag}"] for size in ("tiny", "small", "base")]
    assert sizes == [KAT_TINY, KAT_SMALL, KAT_BASE]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub on this machine; it serves what lies in this folder as FOLDER/NAME/FILE.

    The addresses are the hub's own, /adamdad/NAME/resolve/main/FILE.
    """
    constants = pytest.importorskip("huggingface_hub.constants")
    root = tmp_path / "served"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self, with_content=False):
            _, owner, name, _, _, file = self.path.split("/")
            path = root / owner / name / file
            content = path.read_bytes() if path.exists() else b""
            self.send_response(200 if path.exists() else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hash(content):x}"')
            if not path.exists():
                known = (root / owner / name).exists()
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def do_GET(self):
            self.do_HEAD(with_content=True)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield root / "adamdad"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
class TestAReleasedModel:
    NAME = "kat_tiny_patch16_224.vitft"

    @pytest.fixture
    def folder(self, served, released, file):
        folder = served / self.NAME
        folder.mkdir(parents=True)
        if file.endswith("safetensors"):
            save_file(released, folder / file)
        else:
            torch.save(released, folder / file)
        return folder

    def test_is_fetched_by_its_name(self, folder, released):
        model = katlib.load_pretrained(self.NAME)
        assert is_same(model, released)
        assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)

    def test_has_the_mean_that_the_hub_says(self, folder):
        said = {"architecture": "kat", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (folder / "config.json").write_text(json.dumps(said))
        assert katlib.load_pretrained(self.NAME).pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_a_file_of_another_size_than_its_name_says_is_refused(served, released):
    (served / "kat_small_patch16_224").mkdir(parents=True)
    save_file(released, served / "kat_small_patch16_224" / "model.safetensors")
    words = (
        r"does not fit the model: 151 tensors have another shape .* \(1, 1, 192\) for \(1, 1, 384\)"
    )
    with pytest.raises(ValueError, match=words):
        katlib.load_pretrained("kat_small_patch16_224")


WHAT_TO_DO = (
    r"(?s)could not be fetched.*download https://huggingface.co/adamdad/kat_tiny_patch16_224"
    r"/resolve/main/model.safetensors.*pass its path"
)


def in_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "cache"))


def without_a_home(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])


@pytest.mark.parametrize("spoil", [in_a_file, without_a_home])
def test_a_hub_whose_cache_cannot_be_used_is_told_once(served, tmp_path, monkeypatch, spoil):
    (served / "kat_tiny_patch16_224").mkdir(parents=True)
    (served / "kat_tiny_patch16_224" / "config.json").write_text("config.json")
    spoil(tmp_path, monkeypatch)
    files._warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot keep released models.*set HF_HOME") as told:
        paths = [hub._fetch("adamdad/kat_tiny_patch16_224", "config.json") for _ in range(2)]
    assert [path.read_text() for path in paths] == ["config.json"] * 2
    assert len(told) == 1


def test_a_hub_without_the_repository_says_what_to_do(served):
    with pytest.raises(ConnectionError, match=WHAT_TO_DO):
        katlib.load_pretrained("kat_tiny_patch16_224")


def test_no_network_says_what_to_do(served, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=WHAT_TO_DO):
        katlib.load_pretrained("kat_tiny_patch16_224")


def test_a_repository_without_weights_says_so(served):
    (served / "kat_base_patch16_224").mkdir(parents=True)
    with pytest.raises(ConnectionError, match=r"neither model.safetensors nor pytorch_model.bin"):
        katlib.load_pretrained("kat_base_patch16_224")


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        katlib.load_pretrained("kat_tiny_patch16_224")


def test_a_model_that_waits_for_its_weights_draws_none_and_takes_no_memory():
    model = pretrained._without_weights(Architecture(**SMALL), "a test")
    assert model.state_dict().keys() == katlib.VisionTransformer(**SMALL).state_dict().keys()
    assert all(p.is_meta for p in model.parameters())


def test_a_loaded_model_lies_on_the_cpu(kat, tmp_path):
    torch.save(kat.state_dict(), tmp_path / "x.pth")
    model = katlib.load_pretrained(tmp_path / "x.pth", num_heads=2)
    assert not any(p.is_meta for p in model.parameters())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
