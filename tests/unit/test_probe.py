"""The function that a file of weights makes: asked for where the file does not say it, refused
where katlib has no such model, and compared by the outputs for one image."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib import probe
from katlib.architecture import Architecture

SMALL = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10, groups=4
)
HALF = dict(mean=[0.5] * 3, std=[0.5] * 3)


@torch.no_grad()
def away_from_its_start(model):
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def kat():
    return away_from_its_start(katlib.VisionTransformer(**SMALL))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kat.safetensors"


def read(path):
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata()


def rewrite(path, change_header=None, change_tensors=None):
    """The same file with another header or other tensors."""
    tensors, header = read(path)
    if change_header is not None:
        change_header(header)
    if change_tensors is not None:
        change_tensors(tensors)
    save_file(tensors, path, header)


class TestWeightsAlone:
    """A state dict does not say how many heads it has."""

    @pytest.fixture
    def bare(self, kat, tmp_path):
        torch.save(kat.state_dict(), tmp_path / "kat.pt")
        return tmp_path / "kat.pt"

    def test_are_asked_for_the_number_of_heads(self, bare):
        with pytest.raises(ValueError, match=r"not say num_heads.*load_pretrained\(path, num_he"):
            katlib.load_pretrained(bare)

    def test_of_the_model_that_comes_with_katlib_are_too(self, tmp_path):
        state = katlib.load_pretrained("kat-cifar10").state_dict()
        torch.save(state, tmp_path / "kat.pt")
        with pytest.raises(ValueError, match="does not say num_heads"):
            katlib.load_pretrained(tmp_path / "kat.pt")

    def test_of_an_mlp_are_asked_for_its_activation(self, tmp_path):
        model = katlib.VisionTransformer(**SMALL, mlp="mlp")
        torch.save(model.state_dict(), tmp_path / "vit.pt")
        with pytest.raises(ValueError, match=r"architecture=\{'mlp': 'mlp'\}"):
            katlib.load_pretrained(tmp_path / "vit.pt", num_heads=3)

    @pytest.mark.parametrize(
        "given",
        [
            dict(num_heads=3),
            dict(architecture={"num_heads": 3}),
            dict(architecture=Architecture(**SMALL)),
            dict(architecture=SMALL, num_heads=3),
        ],
        ids=["num_heads", "part", "architecture", "both"],
    )
    @torch.no_grad()
    def test_make_the_same_function_once_it_is_said(self, kat, bare, given):
        x = torch.randn(2, 3, 32, 32)
        assert_close(katlib.load_pretrained(bare, **given)(x), kat(x))

    def test_do_not_say_what_their_images_are_like(self, bare):
        cfg = katlib.load_pretrained(bare, num_heads=3).pretrained_cfg
        assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == (None, None, None)

    def test_are_not_saved_without_saying_it(self, bare, path):
        with pytest.raises(ValueError, match="mean and std"):
            katlib.save_pretrained(katlib.load_pretrained(bare, num_heads=3), path)

    def test_of_the_shapes_of_a_released_model_may_be_another(self, tmp_path):
        with torch.device("meta"):
            shapes = katlib.VisionTransformer(embed_dim=192, num_heads=12).state_dict()
        torch.save({k: torch.zeros(v.shape) for k, v in shapes.items()}, tmp_path / "x.pt")
        with pytest.warns(UserWarning, match="taken for that, with num_heads=3"):
            katlib.load_pretrained(tmp_path / "x.pt")
        assert katlib.load_pretrained(tmp_path / "x.pt", num_heads=12).architecture.num_heads == 12

    def test_are_imagenets_for_the_name_of_a_released_model(self, tmp_path):
        with torch.device("meta"):
            shapes = katlib.VisionTransformer(embed_dim=192, num_heads=3).state_dict()
        torch.save({k: torch.zeros(v.shape) for k, v in shapes.items()}, tmp_path / "x.pt")
        model = katlib.load_pretrained(tmp_path / "x.pt", architecture="kat_tiny_patch16_224")
        assert model.architecture.num_heads == 3
        assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "given",
    [dict(num_heads=4), dict(architecture={"num_heads": 4}), dict(architecture={"img_size": 64})],
    ids=str,
)
def test_what_contradicts_the_file_is_refused(kat, path, given):
    katlib.save_pretrained(kat, path, **HALF)
    with pytest.raises(ValueError, match=r"says (num_heads=3|img_size=32), and"):
        katlib.load_pretrained(path, **given)


def test_two_arguments_that_contradict_each_other_are_refused(kat, path):
    torch.save(kat.state_dict(), path)
    with pytest.raises(ValueError, match="architecture= says num_heads=3"):
        katlib.load_pretrained(path, architecture=SMALL, num_heads=4)


@pytest.mark.parametrize(
    "architecture, words",
    [
        ("resnet50", r"'resnet50' is not known.*kat_tiny_patch16_224"),
        ({"heads": 3}, r"\['heads'\] are not known; an architecture has img_size"),
        (3, "architecture=3; needed is a name, a dictionary or an Architecture"),
    ],
    ids=str,
)
def test_an_unknown_architecture_is_refused(kat, path, architecture, words):
    katlib.save_pretrained(kat, path, **HALF)
    with pytest.raises(ValueError, match=words):
        katlib.load_pretrained(path, architecture=architecture)


FEATURES = {
    "global_pool='avg'": dict(global_pool="avg", fc_norm=False),
    "fc_norm=True": dict(global_pool="avg"),
    "class_token=False": dict(class_token=False, global_pool="avg", fc_norm=False),
    "reg_tokens": dict(reg_tokens=2),
    "no_embed_class=True": dict(no_embed_class=True),
    "pos_embed='none'": dict(pos_embed="none"),
    "pre_norm=True": dict(pre_norm=True),
    "final_norm=False": dict(final_norm=False),
    "init_values": dict(init_values=0.1),
    "qk_norm=True": dict(qk_norm=True),
    "qkv_bias=False": dict(qkv_bias=False),
    "act_layer=ReLU": dict(act_layer="relu"),
    "act_layer=GELUTanh": dict(act_layer="gelu_tanh"),
    "norm_layer": dict(norm_layer="rmsnorm"),
    "num_classes=0": dict(num_classes=0),
}
TIMMS = {name: value for name, value in SMALL.items() if name != "groups"}


class TestModelsOfTimms:
    @pytest.fixture(autouse=True)
    def timm(self):
        pytest.importorskip("katlib.timm")
        return pytest.importorskip("timm")

    @pytest.mark.parametrize(
        "name, feature",
        [("vit_tiny_patch16_224", feature) for feature in FEATURES]
        # the activation of a KAT is learned
        + [("kat_tiny_patch16_224", feature) for feature in FEATURES if "act" not in feature],
    )
    def test_are_refused_for_what_katlib_cannot_express(self, timm, name, feature, path):
        options = TIMMS | FEATURES[feature]
        model = away_from_its_start(timm.create_model(name, **options))
        with pytest.raises(ValueError, match="(?s)katlib.VisionTransformer has no .*" + feature):
            katlib.save_pretrained(model, path, **HALF)
        assert not path.exists()

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "kat_tiny_patch16_224"])
    @torch.no_grad()
    def test_make_the_same_function_after_loading(self, timm, name, path):
        model = away_from_its_start(timm.create_model(name, **TIMMS))
        katlib.save_pretrained(model, path)
        x = torch.randn(2, 3, 32, 32)
        assert_close(katlib.load_pretrained(path)(x), model(x), atol=2e-2, rtol=2e-2)


class ReplacedActivation(nn.Module):
    def forward(self, x):
        return F.softplus(x)


def replace_activation(model):
    model.blocks[1].mlp.act = ReplacedActivation()


def scale_attention(model):
    model.blocks[0].attn.num_heads = 1


class ReplacedNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) + x


def replace_norm(model):
    model.norm = ReplacedNorm(48, eps=1e-6)


@pytest.mark.parametrize("replace", [replace_activation, scale_attention, replace_norm])
@pytest.mark.parametrize("head", ["head as it is", "head of zeros"])
def test_a_model_with_another_part_is_not_saved_as_if_it_had_none(replace, head, path):
    model = away_from_its_start(katlib.VisionTransformer(**SMALL, mlp="mlp"))
    replace(model)
    if head == "head of zeros":
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    with pytest.raises(ValueError, match="computes something else"):
        katlib.save_pretrained(model, path, **HALF)


def test_a_model_whose_outputs_are_not_finite_is_not_saved(kat, path):
    kat.norm.register_forward_hook(lambda module, inputs, output: output / 0)
    with pytest.raises(ValueError, match="not finite"):
        katlib.save_pretrained(kat, path, **HALF)


def other_heads(header):
    header["architecture"] = header["architecture"].replace('"num_heads": 3', '"num_heads": 4')


def other_logits(header):
    stored = json.loads(header["probe"])
    stored["logits"][3] += 0.01 * max(map(abs, stored["logits"]))
    header["probe"] = json.dumps(stored)


def other_weight(tensors):
    tensors["blocks.1.attn.qkv.weight"][3, 3] += 1


def two_matrices_exchanged(tensors):
    one, other = (f"blocks.{i}.attn.proj.weight" for i in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]


class TestTheOutputsThatTravelWithTheWeights:
    @pytest.fixture(autouse=True)
    def saved(self, kat, path):
        katlib.save_pretrained(kat, path, **HALF)

    @pytest.mark.parametrize(
        "changes",
        [
            dict(change_header=other_heads),
            dict(change_header=other_logits),
            dict(change_tensors=other_weight),
            dict(change_tensors=two_matrices_exchanged),
        ],
        ids=lambda changes: next(iter(changes.values())).__name__,
    )
    def test_find_another_function(self, path, changes):
        rewrite(path, **changes)
        with pytest.raises(ValueError, match=r"makes another function than the model that was"):
            katlib.load_pretrained(path)

    def test_are_not_needed(self, path):
        """Files of the first version have none."""
        rewrite(path, change_header=lambda header: header.pop("probe"))
        assert katlib.load_pretrained(path).architecture.num_heads == 3

    def test_are_not_a_part_of_pretrained_cfg(self, path):
        assert "probe" not in katlib.load_pretrained(path).pretrained_cfg

    @pytest.mark.parametrize(
        "stored",
        [
            5,
            {},
            {"features": [1.0]},
            {"features": 3, "logits": [1.0]},
            {"features": ["a"], "logits": [True]},
            {"features": [], "logits": []},
            {"features": [float("nan")] * 48, "logits": [0.0] * 10},
            {"features": [0.0] * 48, "logits": [10**400] * 10},
        ],
        ids=range(8),
    )
    def test_are_refused_where_they_are_no_outputs(self, path, stored):
        rewrite(path, change_header=lambda header: header.update(probe=json.dumps(stored)))
        with pytest.raises(ValueError, match=r"damaged header|another function"):
            katlib.load_pretrained(path)

    @pytest.mark.parametrize(
        "context",
        [torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta")],
        ids=["autocast", "inference mode", "default device"],
    )
    def test_are_the_same_in_any_context(self, kat, path, context):
        with context:
            katlib.load_pretrained(path)
        with context:
            katlib.save_pretrained(kat, path, **HALF)
        assert not next(katlib.load_pretrained(path).parameters()).is_meta

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
    def test_are_the_same_for_any_default_dtype(self, path, dtype):
        torch.set_default_dtype(dtype)
        try:
            model = katlib.load_pretrained(path)
        finally:
            torch.set_default_dtype(torch.float32)
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_any_dtype_can_be_saved(kat, path, dtype):
    katlib.save_pretrained(kat.to(dtype), path, **HALF)
    assert katlib.load_pretrained(path).architecture == kat.architecture
    assert next(kat.parameters()).dtype == dtype


def test_saving_leaves_modes_and_hooks_as_they_are(kat, path):
    kat.train()
    kat.blocks[1].eval()
    modes = [module.training for module in kat.modules()]
    katlib.save_pretrained(kat, path, **HALF)
    assert [module.training for module in kat.modules()] == modes
    assert not kat.head._forward_pre_hooks


def test_metadata_do_not_replace_what_katlib_says(kat, path):
    with pytest.raises(ValueError, match=r"\['architecture', 'probe'\] are katlib's own"):
        katlib.save_pretrained(kat, path, **HALF, architecture={}, probe=3)


def test_the_model_that_comes_with_katlib_has_its_outputs_with_it():
    _, header = read(katlib.pretrained.OURS["kat-cifar10"])
    assert len(json.loads(header["probe"])["logits"]) == 10


class TestTheProbeImage:
    def test_is_a_formula_of_k(self):
        image = probe.probe_image(3, 4).flatten()
        expected = [12**0.5 * (k * k * probe.GOLDEN_RATIO % 1 - 0.5) for k in range(48)]
        assert image.tolist() == pytest.approx(expected, abs=1e-9)

    def test_has_patches_that_are_not_alike(self):
        patches = probe.probe_image(3, 32).unfold(2, 8, 8).unfold(3, 8, 8)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(16, -1)
        correlations = torch.corrcoef(patches) - torch.eye(16, dtype=torch.float64)
        assert correlations.abs().max() < 0.5
