"""The examples run at toy size, as a reader would run them, and the stored records are whole.

Models that they export compute the same as katlib's.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import convnet
import export
import gpt
import loop
import pytest
import torch
from tiny import draw_tiny
from torch.testing import assert_close

import katlib

ROOT = Path(__file__).resolve().parents[2]
FOX = "the quick brown fox jumps over the lazy dog\n" * 200


def run(monkeypatch, module, *arguments) -> str:
    """Runs an example's main in this process, with these arguments; returns what it prints."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    with contextlib.redirect_stdout(printed):
        module.main()
    return printed.getvalue()


def run_and_read_record(monkeypatch, module, folder, steps: int, batch: int) -> SimpleNamespace:
    """The record of a short run, and what it printed."""
    path = folder / "record.json"
    arguments = ["--steps", steps, "--batch", batch, "--device", "cpu", "--out", path]
    printed = run(monkeypatch, module, *arguments)
    return SimpleNamespace(record=json.loads(path.read_text()), printed=printed)


# ---- the ConvNet


@pytest.fixture(scope="module")
def convnet_run(tmp_path_factory):
    """A short run on tiny data."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(katlib, "load_cifar10", draw_tiny)
        folder = tmp_path_factory.mktemp("convnet")
        return run_and_read_record(monkeypatch, convnet, folder, steps=12, batch=16)


@pytest.mark.slow
def test_the_convnet_is_trained_with_each_activation(convnet_run):
    rows = convnet_run.record["rows"]
    assert [row["activation"] for row in rows] == ["relu", "gelu", "rational"]
    assert convnet_run.record["steps"] == 12


@pytest.mark.slow
def test_the_convnet_learns_with_each_activation(convnet_run):
    # ten colours; guessing costs 2.3
    losses = [row["train_loss"] for row in convnet_run.record["rows"]]
    assert all(loss < 1.5 for loss in losses), losses


@pytest.mark.slow
def test_a_learned_activation_costs_its_coefficients(convnet_run):
    relu, gelu, rational = (row["parameters"] for row in convnet_run.record["rows"])
    layers, numerator, denominators = 6, 6, 8 * 4
    assert relu == gelu
    assert rational - gelu == layers * (numerator + denominators)


@pytest.mark.slow
def test_the_convnet_prints_its_accuracy(convnet_run):
    assert "test accuracy" in convnet_run.printed


@pytest.mark.slow
def test_an_examples_record_is_not_taken_for_one_of_the_books_runs(convnet_run):
    assert "test_accuracy" not in convnet_run.record


def test_the_convnets_start_as_one_function():
    models = []
    for activation in ("gelu", "rational"):
        torch.manual_seed(0)
        models.append(convnet.ConvNet(activation, width=8))
    gelu, rational = models
    x = torch.randn(8, 3, 32, 32)
    assert_close(gelu(x), rational(x), atol=5e-3, rtol=0)


# ---- the GPT


@pytest.fixture
def gpt_rows(tmp_path, monkeypatch):
    """The rows of a short run on one sentence."""
    monkeypatch.setattr(gpt, "stdlib_text", lambda: FOX)
    return run_and_read_record(monkeypatch, gpt, tmp_path, steps=40, batch=8).record["rows"]


@pytest.mark.slow
def test_the_gpt_learns_with_mlps_and_with_gr_kans(gpt_rows):
    assert [row["mlp"] for row in gpt_rows] == ["mlp", "grkan"]
    # 29 characters; guessing costs 3.4
    losses = [row["loss"] for row in gpt_rows]
    assert all(loss < 2.3 for loss in losses), losses


@pytest.mark.parametrize("mlp", gpt.MLPS)
def test_the_gpt_looks_back_only(mlp):
    model = gpt.GPT(20, mlp)
    tokens = torch.randint(20, (2, 16))
    changed = tokens.clone()
    changed[:, 10:] = torch.randint(20, (2, 6))
    assert_close(model(tokens)[:, :10], model(changed)[:, :10])


def test_the_gpt_has_two_kinds_of_mlps():
    with pytest.raises(ValueError, match="mlp='swiglu' is not known; allowed are mlp, grkan"):
        gpt.GPT(20, "swiglu")


def test_the_test_loss_is_the_mean_over_all_windows():
    model = gpt.GPT(20, "mlp").eval()
    text = torch.randint(20, (3 * gpt.CONTEXT + 2,))
    starts = torch.tensor([0, gpt.CONTEXT, 2 * gpt.CONTEXT])
    expected = gpt.loss_on(model, text, starts).item()
    assert gpt.evaluate(model, text, most_windows=100) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def text():
    return gpt.stdlib_text(50_000)


def test_every_python_has_enough_text(text):
    assert len(text) == 50_000
    assert text.isascii()
    assert text.count("\n") > 500


def test_the_text_is_the_same_every_time(text):
    assert text == gpt.stdlib_text(50_000)


# ---- all examples


@pytest.mark.slow
@pytest.mark.parametrize("example", ["convnet", "gpt"])
def test_an_example_is_a_script(example):
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "--steps" in done.stdout


def test_no_record_is_written_where_none_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loop.store(None, "nothing", SimpleNamespace(), [])
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


STORED_RECORDS = pytest.mark.parametrize(
    "name, kind_key, kinds",
    [("convnet", "activation", convnet.ACTIVATIONS), ("gpt", "mlp", gpt.MLPS)],
)


def stored_record(name: str) -> dict:
    return json.loads((ROOT / "results" / f"example-{name}.json").read_text())


@STORED_RECORDS
def test_a_stored_record_has_five_seeds_of_each_kind(name, kind_key, kinds):
    rows = stored_record(name)["rows"]
    runs = {(row[kind_key], row["seed"]) for row in rows}
    assert runs == {(kind, seed) for kind in kinds for seed in range(5)}
    assert len(rows) == len(runs)


@STORED_RECORDS
def test_a_stored_record_was_made_by_a_committed_program(name, kind_key, kinds):
    commit = stored_record(name)["commit"]
    assert not commit.endswith("+")
    assert commit != "unknown"


@STORED_RECORDS
def test_a_stored_record_is_of_the_long_runs(name, kind_key, kinds):
    assert stored_record(name)["steps"] == 1000


# ---- exported models


def small_model(**changes) -> katlib.VisionTransformer:
    sizes = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    return katlib.VisionTransformer(**sizes | changes).eval()


@pytest.fixture
def onnx():
    """Skips where a model cannot be exported to ONNX or run."""
    if torch.__version__ < "2.7":
        pytest.skip("torch 2.6's export to ONNX knows no operators but its own")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"numerator_groups": 2, "degrees": (3, 2)}, {"mlp": "mlp"}]
)
def test_onnx_computes_the_same(changes, onnx, tmp_path):
    """For a number of images, too, that the model was not exported with."""
    model = small_model(**changes)
    path = tmp_path / "kat.onnx"
    export.to_onnx(model, torch.randn(2, 3, 32, 32), path)
    images = torch.randn(5, 3, 32, 32)
    logits = export.logits_by_onnxruntime(path, images)
    assert_close(logits, model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_the_example_of_an_export_compares_the_logits(onnx, tmp_path, monkeypatch):
    assert "onnxruntime's logits differ" in run(monkeypatch, export, tmp_path / "kat.onnx")


@pytest.mark.slow
@torch.no_grad()
def test_onnx_of_an_activation_in_a_convnet(onnx, tmp_path):
    model = convnet.ConvNet("rational", width=8).eval()
    path = tmp_path / "conv.onnx"
    export.to_onnx(model, torch.randn(2, 3, 32, 32), path)
    images = torch.randn(3, 3, 32, 32)
    logits = export.logits_by_onnxruntime(path, images)
    assert_close(logits, model(images), atol=1e-5, rtol=1e-4)


def test_a_model_to_export_can_be_chosen_by_name():
    pretrained = katlib.load_pretrained("kat-cifar10")
    chosen = export.load_model("kat-cifar10")
    assert_close(chosen.state_dict(), pretrained.state_dict())


@pytest.fixture(scope="module")
def exported():
    """A model, and the same exported by torch.export for any number of images."""
    model = small_model()
    any_batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=any_batch)
    return model, program


@pytest.mark.slow
def test_torch_export_keeps_the_operator(exported):
    _, program = exported
    rational = torch.ops.katlib.rational.default
    # two in each of two blocks
    assert sum(node.target == rational for node in program.graph.nodes) == 4


@pytest.mark.slow
@torch.no_grad()
def test_a_program_that_was_saved_computes_the_same(exported, tmp_path):
    model, program = exported
    torch.export.save(program, tmp_path / "kat.pt2")
    images = torch.randn(5, 3, 32, 32)
    loaded = torch.export.load(tmp_path / "kat.pt2").module()
    assert_close(loaded(images), model(images))
