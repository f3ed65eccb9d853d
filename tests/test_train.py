"""The training loop: it learns, it resumes to the same numbers, it stops where a number is no longer one, it records what it did."""

import json
import math

import pytest
import torch
from torch import nn

from katlib import train as training
from katlib.checkpoint import load_checkpoint, save_checkpoint
from katlib.results import stored_runs, table
from katlib.train import Config, TrainingDiverged, build_model, build_optimizer, learning_rate, train

SMALL = Config(patch_size=8, embed_dim=16, depth=2, num_heads=2, batch_size=16, lr=3e-3)


@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_it_learns(tiny_data, mlp):
    record = train(SMALL, mlp, epochs=25, data=tiny_data, progress=False, device="cpu")
    assert record["epochs"][-1]["train_loss"] < 0.7 * record["epochs"][0]["train_loss"]
    assert record["test_accuracy"] > 0.6                                # ten colours; chance is 0.1


def metrics(record):
    return [{k: v for k, v in e.items() if k not in ("train_s", "images_per_s", "wall_s")} for e in record["epochs"]]


def test_a_resumed_run_gives_the_numbers_of_an_unbroken_one(tiny_data, tmp_path):
    options = dict(mlp="grkan", epochs=4, seed=5, data=tiny_data, progress=False, device="cpu")
    unbroken = train(SMALL, out=tmp_path / "unbroken", **options)

    class Stop(Exception):
        pass

    def stop_after_two(model, epoch):
        if epoch["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        train(SMALL, out=tmp_path / "broken", on_epoch=stop_after_two, **options)
    assert not (tmp_path / "broken" / "result.json").exists()
    torch.manual_seed(99)                                               # whatever happened in between
    resumed = train(SMALL, out=tmp_path / "broken", resume=True, **options)
    assert metrics(resumed) == metrics(unbroken)
    assert resumed["activations"] == unbroken["activations"]
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_run_is_not_resumed(tiny_data, tmp_path):
    options = dict(epochs=1, data=tiny_data, progress=False, device="cpu", out=tmp_path)
    train(SMALL, "mlp", seed=0, **options)
    with pytest.raises(ValueError, match="belongs to another run"):
        train(SMALL, "mlp", seed=1, resume=True, **options)


def test_a_checkpoint_that_could_not_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, SMALL)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimizer, {"epoch": 1})

    def fails(tensors, file, metadata):
        open(file, "wb").write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("katlib.checkpoint.save_file", fails)
    with pytest.raises(OSError):
        save_checkpoint(path, model, optimizer, {"epoch": 2})
    assert load_checkpoint(path, model, optimizer) == {"epoch": 1}


def test_nan_stops_with_the_step_and_the_layer(tiny_data, monkeypatch):
    def poisoned(config, mlp):
        model = build_model(config, mlp)
        with torch.no_grad():
            model.blocks[1].mlp.fc1.weight[0, 0] = math.nan
        return model

    monkeypatch.setattr(training, "build_model", poisoned)
    with pytest.raises(TrainingDiverged, match=r"step 0 .*not finite in blocks\.1\.mlp\.fc1;"):
        train(SMALL, epochs=1, data=tiny_data, progress=False, device="cpu")


def test_a_nan_gradient_names_its_parameter(tiny_data, monkeypatch):
    def poisoned(config, mlp):
        model = build_model(config, mlp)
        model.blocks[0].mlp.fc2.weight.register_hook(lambda g: g * math.nan)
        return model

    monkeypatch.setattr(training, "build_model", poisoned)
    with pytest.raises(TrainingDiverged, match=r"the gradient of blocks\.0\.mlp\.fc2\.weight"):
        train(SMALL, epochs=1, data=tiny_data, progress=False, device="cpu")


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, SMALL) for step in range(100)]
    assert rates[9] == SMALL.lr == max(rates) and rates[0] == pytest.approx(SMALL.lr / 10)
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:])) and rates[-1] < 0.01 * SMALL.lr


def test_coefficients_do_not_decay():
    model = build_model(SMALL, "grkan")
    decayed, spared = build_optimizer(model, SMALL).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] > 0 and spared["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") and "act" not in names[id(p)] and "norm" not in names[id(p)] for p in decayed["params"])
    assert {"weight_numerator", "weight_denominator"} <= {names[id(p)].rsplit(".")[-1] for p in spared["params"]}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize("options, words", [
    (dict(preset="cifar-huge"), "'cifar-huge' is not known; allowed are 'cifar-nano'"),
    (dict(epochs=0), "epochs=0"),
    (dict(limit=0), "limit=0"),
    (dict(resume=True), "needs out="),
    (dict(mlp="kan"), "allowed are 'grkan' and 'mlp'"),
])
def test_bad_options(tiny_data, options, words):
    with pytest.raises(ValueError, match=words):
        train(**{"data": tiny_data, "progress": False} | options)


def test_the_command_line(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "load_cifar10", lambda progress: tiny_data)
    arguments = ["--preset", "cifar-nano", "--mlp", "grkan", "--epochs", "2", "--seed", "3", "--limit", "32", "--test-limit", "16",
                 "--batch-size", "8", "--device", "cpu", "--out", str(tmp_path / "run")]
    training.main(arguments)
    printed = capsys.readouterr().out
    assert "epoch 1/2" in printed and "test accuracy" in printed and "809,658 parameters" in printed
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"preset", "mlp", "seed", "config", "epochs", "test_accuracy", "wall_s", "device_name", "torch", "commit", "date",
            "data_sha256"} <= set(record)
    assert record["seed"] == 3 and len(record["epochs"]) == 2 and record["config"]["train_images"] == 32
    assert record["config"]["batch_size"] == 8 and record["torch"] == torch.__version__
    assert len(record["activations"]) == 8 and 0 <= record["test_accuracy"] <= 1


def test_the_command_line_says_what_went_wrong(monkeypatch, tmp_path):
    def no_data(progress):
        raise RuntimeError("CIFAR-10 is not here")

    monkeypatch.setattr(training, "load_cifar10", no_data)
    with pytest.raises(SystemExit, match="katlib.train: CIFAR-10 is not here"):
        training.main(["--out", str(tmp_path)])


def test_stored_runs_and_their_table(tmp_path):
    for seed, accuracy in ((0, 0.5), (1, 0.6)):
        (tmp_path / f"run{seed}.json").write_text(json.dumps({"mlp": "grkan", "seed": seed, "test_accuracy": accuracy}))
    (tmp_path / "kernel.json").write_text(json.dumps({"milliseconds": 1}))
    assert [run["seed"] for run in stored_runs(tmp_path)] == [0, 1] and len(stored_runs(tmp_path, seed=1)) == 1
    shown = table(stored_runs(tmp_path), {"accuracy <": lambda run: f"{run['test_accuracy']:.1%}"}, "two runs")._repr_html_()
    assert "<td>60.0%</td>" in shown and "accuracy &lt;" in shown
    with pytest.raises(FileNotFoundError, match="come with the book's repository"):
        stored_runs(tmp_path / "missing")


def test_the_stored_runs_of_the_book():
    """The records behind the book's tables: whole, and of the model and the data that they say."""
    runs = stored_runs(preset="cifar-nano")
    assert {run["mlp"] for run in runs} == {"grkan", "mlp"}
    for run in runs:
        model = build_model(training.PRESETS["cifar-nano"], run["mlp"])
        assert run["parameters"] == sum(p.numel() for p in model.parameters())
        assert run["data_sha256"] == "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
        assert len(run["epochs"]) == run["config"]["epochs"] and run["epochs"][-1]["test_accuracy"] == run["test_accuracy"]
        assert not run["commit"].endswith("+") and run["commit"] != "unknown"
