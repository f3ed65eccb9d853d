"""The examples run, at toy size, as a reader would run them; exported models compute the same; the stored records are whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import katlib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))


def run(example, monkeypatch, *arguments):
    """Runs an example's main in this process, with these arguments; returns the module."""
    module = __import__(example)
    monkeypatch.setattr(sys, "argv", [f"{example}.py", *map(str, arguments)])
    module.main()
    return module


def test_the_convnet_learns_with_each_activation(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(katlib, "load_cifar10", lambda: tiny_data)
    run(
        "convnet",
        monkeypatch,
        "--steps",
        12,
        "--batch",
        16,
        "--device",
        "cpu",
        "--out",
        tmp_path / "record.json",
    )
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["activation"] for row in record["rows"]] == ["relu", "gelu", "rational"] and record[
        "steps"
    ] == 12
    assert all(row["train_loss"] < 1.5 for row in record["rows"]), record[
        "rows"
    ]  # ten colours; guessing costs 2.3
    relu, gelu, rational = (row["parameters"] for row in record["rows"])
    assert relu == gelu and rational - gelu == 6 * (6 + 8 * 4)
    assert (
        "test accuracy" in capsys.readouterr().out and "test_accuracy" not in record
    )  # not one of the book's runs


def test_the_convnets_start_as_one_function(monkeypatch):
    module = __import__("convnet")
    models = []
    for activation in ("gelu", "rational"):
        torch.manual_seed(0)
        models.append(module.ConvNet(activation, width=8))
    x = torch.randn(8, 3, 32, 32)
    assert_close(models[0](x), models[1](x), atol=5e-3, rtol=0)


def test_the_gpt_learns_and_looks_back_only(tmp_path, monkeypatch):
    module = __import__("gpt")
    monkeypatch.setattr(
        module, "stdlib_text", lambda: "the quick brown fox jumps over the lazy dog\n" * 200
    )
    run(
        "gpt",
        monkeypatch,
        "--steps",
        40,
        "--batch",
        8,
        "--device",
        "cpu",
        "--out",
        tmp_path / "record.json",
    )
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [row["mlp"] for row in rows] == ["mlp", "grkan"] and all(
        row["loss"] < 2.3 for row in rows
    ), rows  # 29 characters: 3.4 by guessing
    for mlp in ("mlp", "grkan"):
        model = module.GPT(20, mlp)
        tokens = torch.randint(20, (2, 16))
        other = tokens.clone()
        other[:, 10:] = torch.randint(20, (2, 6))
        assert_close(model(tokens)[:, :10], model(other)[:, :10])


def test_the_text_is_there_on_every_python():
    text = __import__("gpt").stdlib_text(50_000)
    assert (
        len(text) == 50_000
        and text.isascii()
        and text.count("\n") > 500
        and text == __import__("gpt").stdlib_text(50_000)
    )


@pytest.mark.parametrize("example", ["convnet", "gpt"])
def test_an_example_is_a_script(example):
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--steps" in done.stdout


@pytest.mark.parametrize(
    "name, kinds", [("convnet", {"relu", "gelu", "rational"}), ("gpt", {"mlp", "grkan"})]
)
def test_the_stored_records_are_whole(name, kinds):
    record = json.loads((ROOT / "results" / f"example-{name}.json").read_text())
    runs = {(row.get("activation") or row["mlp"], row["seed"]) for row in record["rows"]}
    assert runs == {(kind, seed) for kind in kinds for seed in range(5)} and len(
        record["rows"]
    ) == len(runs)
    assert (
        not record["commit"].endswith("+")
        and record["commit"] != "unknown"
        and record["steps"] == 1000
    )


exports_onnx = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="torch 2.6's export to ONNX knows no operators but its own"
)


@exports_onnx
@torch.no_grad()
def test_onnx_computes_the_same(tmp_path, monkeypatch, capsys):
    """By onnxruntime, from a file, for a number of images that it was not exported with; both kinds of model."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = __import__("export")
    x, y = torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32)
    for options in (dict(), dict(numerator_groups=2, degrees=(3, 2)), dict(mlp="mlp")):
        model = katlib.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10, **options
        ).eval()
        module.to_onnx(model, x, tmp_path / "kat.onnx")
        session = onnxruntime.InferenceSession(
            tmp_path / "kat.onnx", providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(None, {"images": y.numpy()})
        assert_close(torch.from_numpy(logits), model(y), atol=1e-5, rtol=1e-4)
    run("export", monkeypatch, tmp_path / "again.onnx")
    assert "onnxruntime's logits differ" in capsys.readouterr().out


@exports_onnx
@torch.no_grad()
def test_onnx_of_an_activation_in_a_convnet(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = __import__("convnet").ConvNet("rational", width=8).eval()
    __import__("export").to_onnx(model, torch.randn(2, 3, 32, 32), tmp_path / "conv.onnx")
    y = torch.randn(3, 3, 32, 32)
    (logits,) = onnxruntime.InferenceSession(
        tmp_path / "conv.onnx", providers=["CPUExecutionProvider"]
    ).run(None, {"images": y.numpy()})
    assert_close(torch.from_numpy(logits), model(y), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_torch_export_keeps_the_operator_and_computes_the_same(tmp_path):
    model = katlib.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10
    ).eval()
    program = torch.export.export(
        model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    operators = [
        node for node in program.graph.nodes if node.target == torch.ops.katlib.rational.default
    ]
    assert len(operators) == 4
    torch.export.save(program, tmp_path / "kat.pt2")
    x = torch.randn(5, 3, 32, 32)
    assert_close(torch.export.load(tmp_path / "kat.pt2").module()(x), model(x))
