"""The training loop: it learns, it resumes to the same numbers, it stops where a number is no longer one, it records what it did."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import draw_tiny
from torch import nn

from katlib.book.html import table
from katlib.book.results import stored_runs
from katlib.train import TrainingDiverged, evaluate, train
from katlib.train import loop as training
from katlib.train.__main__ import main
from katlib.train.checkpoint import load_checkpoint, save_checkpoint
from katlib.train.recipe import (
    PRESETS,
    Config,
    build_model,
    build_optimizer,
    learning_rate,
    prepare,
)

SMALL = Config(patch_size=8, embed_dim=16, depth=2, num_heads=2, batch_size=16, lr=3e-3)


@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_it_learns(tiny_data, mlp):
    record = train(SMALL, mlp, epochs=25, data=tiny_data, progress=False, device="cpu")
    assert record["epochs"][-1]["train_loss"] < 0.7 * record["epochs"][0]["train_loss"]
    assert record["test_accuracy"] > 0.6  # ten colours; chance is 0.1


def metrics(record):
    return [
        {k: v for k, v in e.items() if k not in ("train_s", "images_per_s", "cpu_s", "wall_s")}
        for e in record["epochs"]
    ]


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
    torch.manual_seed(99)  # whatever happened in between
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

    monkeypatch.setattr("katlib.train.checkpoint.save_file", fails)
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


def test_tensorboard_or_how_to_get_it(tiny_data, tmp_path):
    options = dict(
        mlp="mlp",
        epochs=1,
        data=tiny_data,
        progress=False,
        device="cpu",
        out=tmp_path,
        tensorboard=True,
    )
    try:
        import tensorboard
    except ImportError:
        with pytest.raises(ImportError, match="pip install tensorboard"):
            train(SMALL, **options)
    else:
        train(SMALL, **options)
        assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 100, SMALL) for step in range(100)]
    assert rates[9] == SMALL.lr == max(rates) and rates[0] == pytest.approx(SMALL.lr / 10)
    assert (
        all(later < earlier for earlier, later in zip(rates[10:], rates[11:]))
        and rates[-1] < 0.01 * SMALL.lr
    )


def test_coefficients_do_not_decay():
    model = build_model(SMALL, "grkan")
    decayed, spared = build_optimizer(model, SMALL).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] > 0 and spared["weight_decay"] == 0
    assert all(
        names[id(p)].endswith("weight") and "act" not in names[id(p)] and "norm" not in names[id(p)]
        for p in decayed["params"]
    )
    assert {"weight_numerator", "weight_denominator"} <= {
        names[id(p)].rsplit(".")[-1] for p in spared["params"]
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


EVERYTHING = dict(rand_augment=1, mixup=0.4, cutmix=1.0, ema=0.9, drop=0.1, drop_path=0.2)


def test_a_resumed_run_with_the_whole_recipe_too(tiny_data, tmp_path):
    options = dict(
        mlp="grkan", epochs=3, seed=5, data=tiny_data, progress=False, device="cpu", **EVERYTHING
    )
    unbroken = train(SMALL, **options)

    def stop(model, epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, out=tmp_path, on_epoch=stop, **options)
    torch.manual_seed(99)
    assert metrics(train(SMALL, out=tmp_path, resume=True, **options)) == metrics(unbroken)


RUN = """
import sys, torch
from tiny import draw_tiny
from test_train import SMALL, EVERYTHING
from katlib.train import train
torch.set_num_threads(1)
train(SMALL, "grkan", epochs=12, seed=5, data=draw_tiny(), out=sys.argv[1], resume=True, progress=False, device="cpu", **EVERYTHING)
"""


def test_a_run_that_is_killed_again_and_again_ends_at_the_same_numbers(tmp_path):
    """kill -9 at any moment: whatever was being written, the next start goes on from a whole checkpoint."""
    unbroken = train(
        SMALL,
        "grkan",
        epochs=12,
        seed=5,
        data=draw_tiny(),
        progress=False,
        device="cpu",
        **EVERYTHING,
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    kills = 0
    for _ in range(50):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], env=environment)
        enough, deadline = count_lines(tmp_path) + 4, time.monotonic() + 120
        while (
            process.poll() is None
            and count_lines(tmp_path) < enough
            and time.monotonic() < deadline
        ):
            time.sleep(0.0003)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (tmp_path / "result.json").exists():
            break
    assert kills >= 2
    record = json.loads((tmp_path / "result.json").read_text())
    assert [e["epoch"] for e in metrics(record)] == list(range(1, 13))
    for got, expected in zip(metrics(record), metrics(unbroken)):
        assert got == pytest.approx(expected, rel=1e-5)


def count_lines(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def test_a_full_disk_ends_with_a_message_and_a_whole_checkpoint(tmp_path):
    """A limit on the size of files stands in for the disk: it has no room for a checkpoint of 2.6 MB beside the one of before."""
    code = """
import resource, signal, sys
from tiny import draw_tiny
from test_train import SMALL
from katlib.train import __main__ as cli, loop as training
training.load_cifar10 = lambda progress: draw_tiny()


def fill_the_disk(model, epoch):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


whole = training.train
training.train = lambda **options: whole(**options | {"on_epoch": fill_the_disk})
cli.main(["--preset", "cifar-pico", "--epochs", "2", "--out", sys.argv[1], "--device", "cpu"])
"""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    run = [sys.executable, "-c", code, str(tmp_path)]
    full = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert (
        full.returncode == 1 and "katlib.train: " in full.stderr and "Traceback" not in full.stderr
    )
    assert "File too large" in full.stderr and not list(tmp_path.glob("*.part"))
    model = build_model(PRESETS["cifar-pico"], "grkan")
    state = load_checkpoint(
        tmp_path / "checkpoint.safetensors", model, build_optimizer(model, PRESETS["cifar-pico"])
    )
    assert [e["epoch"] for e in state["history"]] == [1]


def test_ctrl_c_says_how_to_go_on(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_cifar10", lambda progress: tiny_data)
    monkeypatch.setattr(
        training,
        "save_checkpoint",
        lambda path, *rest: (save_checkpoint(path, *rest), interrupt())[0],
    )

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="--resume` goes on after the last whole epoch"):
        main(["--preset", "cifar-pico", "--epochs", "2", "--out", str(tmp_path), "--device", "cpu"])


def draw_recipes():
    return [dict(), EVERYTHING, dict(rand_augment=2), dict(mixup=1.0), dict(cutmix=1.0)]


@pytest.mark.parametrize("recipe", draw_recipes())
def test_a_batch_is_the_same_in_every_process(tiny_data, recipe):
    config = replace(SMALL, **recipe)
    before = torch.get_rng_state()
    batches = []
    for _ in range(2):
        torch.rand(3)  # what else the process draws is its own affair
        batches.append(
            prepare(
                tiny_data.train_images,
                tiny_data.train_labels,
                config,
                torch.Generator().manual_seed(1),
                seed=7,
            )
        )
    other = prepare(
        tiny_data.train_images,
        tiny_data.train_labels,
        config,
        torch.Generator().manual_seed(1),
        seed=8,
    )[0]
    torch.set_rng_state(before)
    (x, y), (x2, y2) = batches
    assert (
        torch.equal(x, x2)
        and torch.equal(y, y2)
        and x.shape == (64, 3, 32, 32)
        and x.dtype == torch.float32
    )
    assert torch.equal(x, other) == (recipe == {})
    if config.mixup or config.cutmix:
        assert y.shape == (64, 10) and torch.allclose(y.sum(1), torch.ones(64))
    else:
        assert torch.equal(y, tiny_data.train_labels)


def test_the_average_of_the_weights_is_evaluated(tiny_data):
    seen = []
    record = train(
        SMALL,
        "mlp",
        epochs=3,
        data=tiny_data,
        progress=False,
        device="cpu",
        ema=0.99,
        on_epoch=lambda m, e: seen.append(
            (m, evaluate(m, tiny_data.test_images, tiny_data.test_labels))
        ),
    )
    plain = train(SMALL, "mlp", epochs=3, data=tiny_data, progress=False, device="cpu")
    assert [loss for _, (loss, _) in seen] == [e["test_loss"] for e in record["epochs"]]
    assert [e["train_loss"] for e in record["epochs"]] == [
        e["train_loss"] for e in plain["epochs"]
    ]  # training itself is the same
    assert record["epochs"][-1]["test_loss"] != plain["epochs"][-1]["test_loss"]


def test_what_is_frozen_stays_and_what_is_small_starts_small(tiny_data):
    record = train(
        SMALL, "grkan", epochs=2, data=tiny_data, progress=False, device="cpu", learned=False
    )
    start = build_model(SMALL, "grkan").blocks[0].mlp.act2
    assert (
        record["activations"]["blocks.0.mlp.act2"]["numerator"] == start.weight_numerator.tolist()
    )
    model = build_model(replace(SMALL, embed_dim=64, weight_std=0.02), "grkan")
    assert model.blocks[1].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert build_model(replace(SMALL, groups=None, numerator_groups=None), "grkan").blocks[
        0
    ].mlp.act2.weight_numerator.shape == (64, 6)
    released = (
        build_model(replace(SMALL, act_init=("identity", "released-gelu")), "grkan")
        .blocks[0]
        .mlp.act2
    )
    assert released(torch.full((1, 64), 3.0))[0, 0].item() == pytest.approx(1.53, abs=0.01)


DISTRIBUTED = """
import sys, torch
from torch import distributed
from tiny import draw_tiny
from test_train import SMALL
from katlib.train import train
torch.set_num_threads(1)
distributed.init_process_group("gloo")
models = []
record = train(SMALL, "grkan", epochs=2, seed=1, data=draw_tiny(), progress=False, device="cpu", batch_size=20, mixup=0.4, out=sys.argv[1],
               on_epoch=lambda model, e: models.append(model))
if distributed.get_rank() == 0:
    torch.save(models[-1].state_dict(), sys.argv[1] + "/weights.pt")
distributed.destroy_process_group()
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Batches of 20 from 64 images, so that the last, of 4, and those of 20 are both shared out."""
    models = []
    one = train(
        SMALL,
        "grkan",
        epochs=2,
        seed=1,
        data=draw_tiny(),
        progress=False,
        device="cpu",
        batch_size=20,
        mixup=0.4,
        on_epoch=lambda model, e: models.append(model),
    )
    here = Path(__file__).parent
    (tmp_path / "run.py").write_text(DISTRIBUTED)
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            str(free_port()),
            str(tmp_path / "run.py"),
            str(tmp_path),
        ],
        check=True,
        env=environment,
        timeout=300,
    )
    two = json.loads((tmp_path / "result.json").read_text())
    assert two["processes"] == 2 and one["processes"] == 1
    for got, expected in zip(metrics(two), metrics(one)):
        assert got == pytest.approx(expected, rel=1e-4)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, expected in models[-1].state_dict().items():
        got = weights[name]
        if name.endswith(
            "qkv.bias"
        ):  # the bias of the keys changes nothing: Adam moves it by rounding errors
            got, expected = (torch.cat((b[:16], b[32:])) for b in (got, expected))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-5, msg=name)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    "options, words",
    [
        (
            dict(preset="cifar-huge"),
            "'cifar-huge' is not known; allowed are 'cifar-pico', 'cifar-nano'",
        ),
        (dict(epochs=0), "epochs=0"),
        (dict(limit=0), "limit=0"),
        (dict(resume=True), "needs out="),
        (dict(group=4), "'group'. are not fields of Config; it has patch_size"),
        (dict(mlp="kan"), "allowed are 'grkan' and 'mlp'"),
    ],
)
def test_bad_options(tiny_data, options, words):
    with pytest.raises(ValueError, match=words):
        train(**{"data": tiny_data, "progress": False} | options)


def test_the_command_line(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "load_cifar10", lambda progress: tiny_data)
    arguments = [
        "--preset",
        "cifar-nano",
        "--mlp",
        "grkan",
        "--epochs",
        "2",
        "--seed",
        "3",
        "--limit",
        "32",
        "--test-limit",
        "16",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    main(arguments)
    printed = capsys.readouterr().out
    assert "epoch 1/2" in printed and "test accuracy" in printed and "809,658 parameters" in printed
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {
        "preset",
        "mlp",
        "seed",
        "config",
        "epochs",
        "test_accuracy",
        "wall_s",
        "device_name",
        "torch",
        "commit",
        "date",
        "data_sha256",
    } <= set(record)
    assert (
        record["seed"] == 3
        and len(record["epochs"]) == 2
        and record["config"]["train_images"] == 32
    )
    assert record["config"]["batch_size"] == 8 and record["torch"] == torch.__version__
    assert len(record["activations"]) == 8 and 0 <= record["test_accuracy"] <= 1


def test_the_command_line_says_what_went_wrong(monkeypatch, tmp_path):
    def no_data(progress):
        raise RuntimeError("CIFAR-10 is not here")

    monkeypatch.setattr(training, "load_cifar10", no_data)
    with pytest.raises(SystemExit, match="katlib.train: CIFAR-10 is not here"):
        main(["--out", str(tmp_path)])


def test_stored_runs_and_their_table(tmp_path):
    for seed, accuracy in ((0, 0.5), (1, 0.6)):
        (tmp_path / f"run{seed}.json").write_text(
            json.dumps({"mlp": "grkan", "seed": seed, "test_accuracy": accuracy})
        )
    (tmp_path / "kernel.json").write_text(json.dumps({"milliseconds": 1}))
    assert [run["seed"] for run in stored_runs(tmp_path)] == [0, 1] and len(
        stored_runs(tmp_path, seed=1)
    ) == 1
    shown = table(
        stored_runs(tmp_path), {"accuracy <": lambda run: f"{run['test_accuracy']:.1%}"}, "two runs"
    )._repr_html_()
    assert "<td>60.0%</td>" in shown and "accuracy &lt;" in shown
    with pytest.raises(FileNotFoundError, match="come with the book's repository"):
        stored_runs(tmp_path / "missing")


def test_the_stored_runs_of_the_book():
    """The records behind the book's tables: whole, and of the model and the data that they say."""
    runs = stored_runs(preset="cifar-nano")
    assert {run["mlp"] for run in runs} == {"grkan", "mlp"}
    for run in runs:
        model = build_model(PRESETS["cifar-nano"], run["mlp"])
        assert run["parameters"] == sum(p.numel() for p in model.parameters())
        assert (
            run["data_sha256"] == "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
        )
        assert (
            len(run["epochs"]) == run["config"]["epochs"]
            and run["epochs"][-1]["test_accuracy"] == run["test_accuracy"]
        )
        assert not run["commit"].endswith("+") and run["commit"] != "unknown"
