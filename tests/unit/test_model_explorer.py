"""ModelExplorer on Python's side; tests/browser drives it in a browser."""

import base64
import json
from dataclasses import replace

import live
import pytest
import torch
import traitlets

import katlib
from katlib.train.recipe import PRESETS, build_model
from katlib.widgets import ModelExplorer, images
from katlib.widgets.model import _normalised, _rounded


def small_model(**arguments) -> katlib.VisionTransformer:
    sizes = {"img_size": 8, "patch_size": 4, "num_classes": 3, "embed_dim": 16, "depth": 2}
    model = katlib.VisionTransformer(**sizes | {"num_heads": 2, "mlp_ratio": 1.5} | arguments)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": ["a", "b", "c"]}
    return model.eval()


PIXELS = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.tensor([0, 1, 2, 0])
PAIR = [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0], [0.25, 0.0, 0.0, 0.0]]


@pytest.fixture
def explorer() -> ModelExplorer:
    return ModelExplorer(small_model(), (PIXELS, LABELS))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(_normalised(PIXELS, model.pretrained_cfg))


# ---- what the page gets


def test_without_a_model_it_shows_the_books_trained_kat_and_a_frog():
    explorer = ModelExplorer()
    spec = json.loads(explorer.spec)
    assert spec["depth"] == 4
    assert len(spec["labels"]) == 20
    assert spec["classes"][spec["labels"][explorer.image]] == "frog"


def test_the_weights_are_all_but_the_coefficients_in_half_precision(explorer):
    spec = json.loads(explorer.spec)
    coefficients = sum(
        parameter.numel()
        for name, parameter in explorer.model.named_parameters()
        if "weight_numerator" in name or "weight_denominator" in name
    )
    count = sum(parameter.numel() for parameter in explorer.model.parameters()) - coefficients
    assert len(explorer.weights) == 2 * count
    assert sum(size for _, size in spec["tensors"]) == count


def test_the_logits_are_those_of_the_rounded_weights(explorer):
    stated = torch.tensor(json.loads(explorer.spec)["logits"])
    torch.testing.assert_close(stated, logits(_rounded(explorer.model)), rtol=0, atol=1e-5)
    assert not torch.allclose(stated, logits(explorer.model), rtol=0, atol=1e-5)


def test_the_pictures_are_the_pixels(explorer):
    assert base64.b64decode(explorer.pictures) == PIXELS.numpy().tobytes()


def test_a_function_is_given_for_each_group_though_groups_share_numerators(explorer):
    functions = json.loads(explorer.spec)["functions"]
    act = explorer.model.blocks[1].mlp.act2
    assert list(functions) == [f"blocks.{b}.mlp.act{i}" for b in (0, 1) for i in (1, 2)]
    assert len(functions["blocks.1.mlp.act2"]) == 8
    numerator, denominator = functions["blocks.1.mlp.act2"][5]
    assert (numerator, denominator) == (
        act.weight_numerator[0].tolist(),
        act.weight_denominator[5].tolist(),
    )


def test_the_stored_images_are_the_first_two_of_each_class():
    data = katlib.load_cifar10()
    pixels, labels = images.first_of_each_class(data.test_images, data.test_labels)
    stored_pixels, stored_labels = images.load_images()
    assert torch.equal(stored_pixels, pixels)
    assert torch.equal(stored_labels, labels)


def test_a_built_page_has_its_weights_in_a_script_beside_it(explorer, tmp_path):
    page = live.html(explorer, "a", tmp_path / "live", "../_static/live")
    (script,) = (tmp_path / "live").iterdir()
    assert base64.b64encode(explorer.weights).decode() in script.read_text()
    assert f'"address": "../_static/live/{script.name}"' in page
    assert len(page) < len(explorer._esm) + 40_000


def test_the_weights_of_the_compact_model_are_one_script_of_at_most_two_megabytes(tmp_path):
    model = build_model(PRESETS["cifar-compact"])
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": None}
    page = live.html(ModelExplorer(model), "a", tmp_path, "")
    (script,) = tmp_path.iterdir()
    assert script.stat().st_size < 2_000_000
    assert len(page) < 1_500_000


# ---- what is refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mlp": "swiglu"}, "allowed are 'grkan' and 'mlp'"),
        ({"in_chans": 1}, "1 channels, not 3"),
        ({"num_classes": 21}, "21 classes"),
        ({"groups": None}, "functions in a layer"),
        ({"embed_dim": 512, "depth": 4}, "parameters"),
    ],
)
def test_a_model_that_a_page_cannot_show_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ModelExplorer(small_model(**change), (PIXELS, LABELS))


def test_a_model_that_does_not_say_how_images_are_normalised_is_refused():
    model = small_model()
    del model.pretrained_cfg
    with pytest.raises(ValueError, match="pretrained_cfg"):
        ModelExplorer(model, (PIXELS, LABELS))


def test_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match="VisionTransformer"):
        ModelExplorer(torch.nn.Linear(3, 3))


@pytest.mark.parametrize(
    "bad",
    [
        PIXELS,
        (PIXELS.float(), LABELS),
        (PIXELS, LABELS[:2]),
        (PIXELS, LABELS + 1),
        (PIXELS[:0],) * 2,
    ],
    ids=["no labels", "floats", "few labels", "label 3", "none"],
)
def test_images_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match="allowed is a pair of images"):
        ModelExplorer(small_model(), bad)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("coefficients", {"blocks.2.mlp.act1.0": PAIR}, "allowed are 'blocks.0.mlp.act1.0' to"),
        ("coefficients", {"blocks.0.mlp.act1.0": [[1.0], []]}, "needed are 6 and 4"),
        ("coefficients", {"blocks.0.mlp.act1.0": 3}, "coefficients"),
        ("coefficients", {"blocks.0.mlp.act1.0": [[float("nan")] * 6, [0] * 4]}, "finite"),
        ("removed", ["blocks.0.attn.2"], "allowed are 'blocks.0.attn.0' to 'blocks.1.mlp'"),
        ("image", 4, "images 0 to 3"),
        ("function", "act1", "allowed are"),
        ("spec", "{}", "cannot be assigned"),
        ("weights", b"", "cannot be assigned"),
    ],
)
def test_what_does_not_fit_cannot_be_assigned(explorer, key, value, message):
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(explorer, key, value)


# ---- writing back


def test_tensors_can_be_assigned(explorer):
    explorer.coefficients = {"blocks.0.mlp.act1.3": tuple(map(torch.tensor, PAIR))}
    assert explorer.coefficients == {"blocks.0.mlp.act1.3": PAIR}


def test_without_edits_write_back_changes_nothing(explorer):
    before = {name: value.clone() for name, value in explorer.model.state_dict().items()}
    explorer.write_back()
    after = explorer.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_edit_of_a_whole_layer_keeps_the_shared_numerator(explorer):
    explorer.coefficients = {f"blocks.0.mlp.act1.{g}": PAIR for g in range(8)}
    explorer.write_back()
    act = explorer.model.blocks[0].mlp.act1
    assert act.weight_numerator.tolist() == [PAIR[0]]
    assert act.weight_denominator.tolist() == [PAIR[1]] * 8


def test_an_edit_of_one_group_gives_each_group_a_numerator_of_its_own(explorer):
    kept = explorer.model.blocks[0].mlp.act1.weight_numerator[0].tolist()
    explorer.coefficients = {"blocks.0.mlp.act1.3": PAIR}
    explorer.write_back()
    rows = explorer.model.blocks[0].mlp.act1.weight_numerator.tolist()
    assert rows[3] == PAIR[0]
    assert rows[:3] + rows[4:] == [kept] * 7
    assert explorer.model.architecture == replace(small_model().architecture, numerator_groups=8)


def test_a_model_that_was_written_to_can_be_saved_and_loaded(explorer, tmp_path):
    explorer.coefficients = {"blocks.0.mlp.act1.3": PAIR}
    explorer.removed = ["blocks.1.attn.0"]
    explorer.write_back()
    katlib.save_pretrained(explorer.model, tmp_path / "edited.safetensors")
    loaded = katlib.load_pretrained(tmp_path / "edited.safetensors")
    torch.testing.assert_close(logits(loaded), logits(explorer.model), rtol=0, atol=0.01)


def test_a_removed_mlp_adds_nothing(explorer):
    explorer.removed = ["blocks.1.mlp"]
    explorer.write_back()
    x = torch.randn(1, 5, 16)
    assert not explorer.model.blocks[1].mlp(x).any()
    assert explorer.model.blocks[0].mlp(x).any()


def test_a_removed_head_has_no_weights_in_the_projection(explorer):
    explorer.removed = ["blocks.0.attn.1"]
    explorer.write_back()
    weight = explorer.model.blocks[0].attn.proj.weight
    assert not weight[:, 8:].any()
    assert weight[:, :8].all()


def test_edits_that_are_taken_back_restore_the_model(explorer):
    before = logits(explorer.model)
    explorer.coefficients = {"blocks.0.mlp.act1.3": PAIR}
    explorer.removed = ["blocks.0.mlp", "blocks.0.attn.1"]
    explorer.write_back()
    assert not torch.equal(logits(explorer.model), before)
    explorer.coefficients, explorer.removed = {}, []
    explorer.write_back()
    torch.testing.assert_close(logits(explorer.model), before)


def test_gelu_has_no_coefficients_to_write_to():
    explorer = ModelExplorer(small_model(mlp="mlp"), (PIXELS, LABELS))
    explorer.coefficients = {"blocks.0.mlp.act.0": PAIR}
    with pytest.raises(ValueError, match="GELU, which has no coefficients"):
        explorer.write_back()


def test_it_is_driven_from_python(explorer):
    seen = []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])))
    explorer.image = 2
    explorer.function = "blocks.1.mlp.act2.7"
    explorer.removed = ["blocks.1.mlp", "blocks.0.mlp"]
    assert seen == [
        ("image", 2),
        ("function", "blocks.1.mlp.act2.7"),
        ("removed", ["blocks.0.mlp", "blocks.1.mlp"]),
    ]
