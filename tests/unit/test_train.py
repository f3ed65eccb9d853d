"""The training loop: it learns, it resumes to the same numbers, it stops at what is not finite."""

import getpass
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import draw_tiny
from torch import nn

from katlib.architecture import MLPS, Architecture
from katlib.book.html import table
from katlib.book.results import stored_runs
from katlib.train import TrainingDiverged, evaluate, loop, start, train
from katlib.train import __main__ as command_line
from katlib.train.__main__ import main, parser
from katlib.train.checkpoint import load_checkpoint, load_state, save_checkpoint
from katlib.train.data import CIFAR10, NotDownloaded
from katlib.train.recipe import (
    FLAT_NAMES,
    PRESETS,
    Average,
    Config,
    build_model,
    build_optimizer,
    learning_rate,
    prepare,
    schedule,
    set_learning_rates,
)

HERE = Path(__file__).parent

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim has no Muon")

SMALL = Config(batch_size=16, lr=3e-3).replace(patch_size=8, embed_dim=16, depth=2, num_heads=2)
EVERYTHING = dict(rand_augment=1, mixup=0.4, cutmix=1.0, ema=0.9, drop=0.1, drop_path=0.2)

DATA_SHA256 = "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
TIMES = ("train_s", "images_per_s", "cpu_s", "wall_s")


def train_small(data: CIFAR10, mlp: str = "grkan", **options) -> dict:
    return train(SMALL, mlp, data=data, progress=False, device="cpu", **options)


def metrics(record: dict) -> list[dict]:
    """The metrics of the epochs, without the times."""
    return [
        {key: value for key, value in epoch.items() if key not in TIMES}
        for epoch in record["epochs"]
    ]


class Stopped(Exception):
    pass


def stop_after(epoch: int) -> Callable[[nn.Module, dict], None]:
    """For `on_epoch`: ends the run after an epoch."""

    def stop(model: nn.Module, metrics: dict) -> None:
        if metrics["epoch"] == epoch:
            raise Stopped

    return stop


def run_python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Python in a process of its own, which finds the modules of the tests."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment(), timeout=300, **options)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}


# ---- learning


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_it_learns(tiny_data, mlp):
    record = train_small(tiny_data, mlp, epochs=25)
    assert record["epochs"][-1]["train_loss"] < 0.7 * record["epochs"][0]["train_loss"]
    # ten colours: chance is 0.1
    assert record["test_accuracy"] > 0.6


@pytest.fixture(scope="module")
def averaged():
    """A run whose weights are averaged, the same without, and what evaluating each epoch gave."""
    data = draw_tiny()
    losses = []

    def evaluate_again(model: nn.Module, metrics: dict) -> None:
        losses.append(evaluate(model, data.test_images, data.test_labels)[0])

    averaged = train_small(data, "mlp", epochs=3, ema=0.99, on_epoch=evaluate_again)
    plain = train_small(data, "mlp", epochs=3)
    return SimpleNamespace(record=averaged, plain=plain, losses=losses)


def of_epochs(record: dict, key: str) -> list[float]:
    return [epoch[key] for epoch in record["epochs"]]


def test_on_epoch_gets_the_model_that_was_evaluated(averaged):
    assert averaged.losses == of_epochs(averaged.record, "test_loss")


def test_averaging_leaves_training_as_it_is(averaged):
    assert of_epochs(averaged.record, "train_loss") == of_epochs(averaged.plain, "train_loss")


def test_the_average_of_the_weights_is_evaluated(averaged):
    assert averaged.record["epochs"][-1]["test_loss"] != averaged.plain["epochs"][-1]["test_loss"]


def test_frozen_coefficients_stay_where_they_start(tiny_data):
    record = train_small(tiny_data, epochs=2, learned=False)
    start = build_model(SMALL, "grkan").blocks[0].mlp.act2.weight_numerator
    assert record["activations"]["blocks.0.mlp.act2"]["numerator"] == start.tolist()


def test_learned_coefficients_move(tiny_data):
    record = train_small(tiny_data, epochs=1)
    start = build_model(SMALL, "grkan").blocks[0].mlp.act2.weight_numerator
    assert record["activations"]["blocks.0.mlp.act2"]["numerator"] != start.tolist()


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(tiny_data, monkeypatch):
    norms = norms_of_clipped_gradients(monkeypatch)
    train_small(tiny_data, "mlp", epochs=1, clip_grad=0.01)
    assert len(norms) == 4
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_clip_grad_0_leaves_the_gradients_as_they_are(tiny_data, monkeypatch):
    clipped = norms_of_clipped_gradients(monkeypatch)
    unclipped = train_small(tiny_data, "mlp", epochs=2, clip_grad=0)
    assert clipped == []
    # no norm is as large as this
    huge = train_small(tiny_data, "mlp", epochs=2, clip_grad=1e6)
    assert metrics(unclipped) == metrics(huge)
    assert clipped != []


def norms_of_clipped_gradients(monkeypatch) -> list[float]:
    """Where the norms of gradients go from now on, after they have been clipped."""
    norms = []
    clip = nn.utils.clip_grads_with_norm_

    def spy(parameters, max_norm, total_norm):
        parameters = list(parameters)
        clip(parameters, max_norm, total_norm)
        norms.append(nn.utils.get_total_norm([p.grad for p in parameters]).item())

    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", spy)
    return norms


def test_a_compiled_model_is_asked_for_by_a_flag(tiny_data, monkeypatch):
    compiled = []

    def compile_nothing(model: nn.Module) -> nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile_nothing)
    train_small(tiny_data, "mlp", epochs=1)
    assert compiled == []
    train_small(tiny_data, "mlp", epochs=1, compile=True)
    assert len(compiled) == 1


def test_a_bar_shows_loss_and_accuracy(tiny_data, capsys):
    train(SMALL, "mlp", epochs=1, data=tiny_data, device="cpu", batch_size=4)
    shown = capsys.readouterr().err
    assert "mlp epoch 1/1" in shown
    assert "accuracy=" in shown


def test_evaluating_leaves_the_mode_of_the_model(tiny_data):
    model = build_model(SMALL, "mlp")
    evaluate(model, tiny_data.test_images, tiny_data.test_labels)
    assert model.training
    evaluate(model.eval(), tiny_data.test_images, tiny_data.test_labels)
    assert not model.training


# ---- what is not finite


def poison(monkeypatch, change: Callable[[nn.Module], object]) -> None:
    """Changes the models that are trained from now on."""

    def build_poisoned(config: Config) -> nn.Module:
        model = build_model(config)
        change(model)
        return model

    monkeypatch.setattr(start, "build_model", build_poisoned)


@torch.no_grad()
def spoil_a_weight(model: nn.Module) -> None:
    model.blocks[1].mlp.fc1.weight[0, 0] = math.nan


def spoil_a_gradient(model: nn.Module) -> None:
    model.blocks[0].mlp.fc2.weight.register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.parametrize(
    "change, words",
    [
        (spoil_a_weight, r"step 0 \(epoch 1\): not finite in blocks\.1\.mlp\.fc1; loss nan"),
        (spoil_a_gradient, r"the gradient of blocks\.0\.mlp\.fc2\.weight"),
    ],
)
def test_nan_stops_with_the_step_and_the_layer(tiny_data, monkeypatch, change, words):
    poison(monkeypatch, change)
    with pytest.raises(TrainingDiverged, match=words):
        train_small(tiny_data, epochs=1)


def test_nan_says_its_step_in_a_later_epoch(tiny_data, monkeypatch):
    def spoil(model: nn.Module, metrics: dict) -> None:
        spoil_a_weight(model)

    # 4 steps an epoch
    with pytest.raises(TrainingDiverged, match=r"step 4 \(epoch 2\).*learning rate than 0\.003"):
        train_small(tiny_data, epochs=2, on_epoch=spoil)


def test_a_loss_that_alone_is_not_finite_is_named(tiny_data):
    x = torch.zeros(1, 3, 32, 32)
    assert loop.first_nonfinite(build_model(SMALL, "mlp"), x) == "the loss"


# ---- resuming


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run, and the same run stopped after two of four epochs and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    options = dict(epochs=4, seed=5)
    unbroken = train_small(draw_tiny(), out=folder / "unbroken", **options)
    broken = folder / "broken"
    with pytest.raises(Stopped):
        train_small(draw_tiny(), out=broken, on_epoch=stop_after(2), **options)
    files_of_broken = sorted(path.name for path in broken.iterdir())
    # whatever happened in between
    torch.manual_seed(99)
    record = train_small(draw_tiny(), out=broken, resume=True, **options)
    return SimpleNamespace(
        unbroken=unbroken, record=record, folder=broken, files_of_broken=files_of_broken
    )


def test_a_stopped_run_has_a_checkpoint_and_metrics_and_no_result(resumed):
    assert resumed.files_of_broken == ["checkpoint.safetensors", "metrics.jsonl"]


def test_a_resumed_run_gives_the_numbers_of_an_unbroken_one(resumed):
    assert metrics(resumed.record) == metrics(resumed.unbroken)


def test_a_resumed_run_ends_at_the_coefficients_of_an_unbroken_one(resumed):
    assert resumed.record["activations"] == resumed.unbroken["activations"]


def test_metrics_jsonl_has_a_line_for_each_epoch(resumed):
    lines = (resumed.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.record["epochs"]
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_result_json_is_what_train_returns(resumed):
    assert json.loads((resumed.folder / "result.json").read_text()) == resumed.record


def test_a_whole_run_that_is_resumed_trains_no_more(resumed):
    again = train_small(draw_tiny(), out=resumed.folder, resume=True, epochs=4, seed=5)
    assert again["epochs"] == resumed.record["epochs"]


def test_without_a_checkpoint_resume_starts_at_the_beginning(tiny_data, tmp_path):
    record = train_small(tiny_data, "mlp", epochs=1, out=tmp_path / "new", resume=True)
    assert of_epochs(record, "epoch") == [1]


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """A run of two epochs that goes on until it has five, at once and with a stop after four."""
    folder = tmp_path_factory.mktemp("continued")
    options = dict(seed=5, ema=0.9, cutout=4)
    for name in ("at once", "with a stop"):
        first = train_small(draw_tiny(), out=folder / name, epochs=2, **options)
    options |= dict(resume=True, epochs=5)
    whole = train_small(draw_tiny(), out=folder / "at once", **options)
    with pytest.raises(Stopped):
        train_small(draw_tiny(), out=folder / "with a stop", on_epoch=stop_after(4), **options)
    stopped = train_small(draw_tiny(), out=folder / "with a stop", **options)
    return SimpleNamespace(first=first, whole=whole, stopped=stopped, folder=folder / "at once")


def test_a_whole_run_goes_on_for_more_epochs(continued):
    assert of_epochs(continued.whole, "epoch") == [1, 2, 3, 4, 5]
    assert metrics(continued.whole)[:2] == metrics(continued.first)


def test_a_run_that_goes_on_has_the_learning_rates_of_all_its_epochs(continued):
    # 4 steps an epoch, of which the metrics have the last
    expected = [learning_rate(4 * epoch - 1, 4 * 5, SMALL) for epoch in (3, 4, 5)]
    assert of_epochs(continued.whole, "lr")[2:] == expected


def test_a_record_says_its_stages(continued):
    assert "stages" not in continued.first["config"]
    assert continued.whole["config"]["epochs"] == 5
    assert continued.whole["config"]["stages"] == [
        {"first_epoch": 1, "epochs": 2},
        {"first_epoch": 3, "epochs": 5},
    ]


def test_a_run_that_went_on_and_was_stopped_gives_the_numbers_of_one_that_was_not(continued):
    assert metrics(continued.stopped) == metrics(continued.whole)
    assert continued.stopped["config"] == continued.whole["config"]


def test_a_run_that_was_stopped_may_go_on_for_more_epochs(tiny_data, tmp_path):
    with pytest.raises(Stopped):
        train_small(tiny_data, "mlp", epochs=3, out=tmp_path, on_epoch=stop_after(1))
    record = train_small(tiny_data, "mlp", epochs=4, out=tmp_path, resume=True)
    assert record["config"]["stages"][1] == {"first_epoch": 2, "epochs": 4}
    assert of_epochs(record, "epoch") == [1, 2, 3, 4]


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_fewer_epochs_than_before_are_refused(continued, epochs):
    words = rf"a run of 5 epochs, of which 5 are done, and epochs={epochs} is fewer"
    options = dict(seed=5, ema=0.9, cutout=4, resume=True)
    with pytest.raises(ValueError, match=words):
        train_small(draw_tiny(), out=continued.folder, epochs=epochs, **options)


@needs_muon
def test_a_resumed_run_of_muon_gives_the_numbers_of_an_unbroken_one(tiny_data, tmp_path):
    options = dict(epochs=3, optimizer="muon", precision="bf16", cutout=4, schedule="linear")
    whole = train_small(tiny_data, **options)
    with pytest.raises(Stopped):
        train_small(tiny_data, out=tmp_path, on_epoch=stop_after(1), **options)
    resumed = train_small(tiny_data, out=tmp_path, resume=True, **options)
    assert metrics(resumed) == metrics(whole)


@pytest.mark.slow
def test_a_resumed_run_with_the_whole_recipe_too(tiny_data, tmp_path):
    options = dict(epochs=3, seed=5, **EVERYTHING)
    unbroken = train_small(tiny_data, **options)
    with pytest.raises(Stopped):
        train_small(tiny_data, out=tmp_path, on_epoch=stop_after(1), **options)
    torch.manual_seed(99)
    resumed = train_small(tiny_data, out=tmp_path, resume=True, **options)
    assert metrics(resumed) == metrics(unbroken)


@pytest.fixture(scope="module")
def mlp_run(tmp_path_factory):
    """The folder of a run of one epoch of the twin with seed 0."""
    folder = tmp_path_factory.mktemp("mlp")
    train_small(draw_tiny(), "mlp", epochs=1, out=folder)
    return folder


@pytest.mark.parametrize(
    "changes, differences",
    [
        (dict(seed=1), "seed was 0, now 1"),
        (dict(lr=1e-3, seed=2), "seed was 0, now 2; lr was 0.003, now 0.001"),
        # weights of other shapes would not fit: the runs are compared before they are loaded
        (dict(embed_dim=32), "embed_dim was 16, now 32"),
        (dict(mlp="grkan"), "mlp was mlp, now grkan"),
        # other epochs alone are no other run
        (dict(limit=10, epochs=2), "train_images was 64, now 10"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_resumed(tiny_data, mlp_run, changes, differences):
    options = {"mlp": "mlp", "epochs": 1} | changes
    with pytest.raises(ValueError) as caught:
        train_small(tiny_data, out=mlp_run, resume=True, **options)
    path = mlp_run / "checkpoint.safetensors"
    assert str(caught.value) == f"{path} belongs to another run: {differences}"


def test_a_field_that_an_older_checkpoint_lacks_is_absent(tiny_data, tmp_path):
    train_small(tiny_data, "mlp", epochs=1, out=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    state = load_state(path)
    del state["run"]["config"]["ema"]
    model = build_model(SMALL, "mlp")
    save_checkpoint(path, model, build_optimizer(model, SMALL), state)
    with pytest.raises(ValueError, match=r"another run: ema was absent, now 0\.0$"):
        train_small(tiny_data, "mlp", epochs=1, out=tmp_path, resume=True)


# ---- checkpoints


def test_a_checkpoint_that_could_not_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, SMALL)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimizer, {"epoch": 1})

    def fail_half_way(tensors, file, metadata):
        Path(file).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("katlib.train.checkpoint.save_file", fail_half_way)
    with pytest.raises(OSError):
        save_checkpoint(path, model, optimizer, {"epoch": 2})
    assert load_checkpoint(path, model, optimizer) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_holds_the_model_the_optimizer_and_the_average(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, SMALL)
    average = Average(model, 0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    average.update(model)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimizer, {}, average)

    other = nn.Linear(2, 2)
    other_optimizer = build_optimizer(other, SMALL)
    other_average = Average(other, 0.5)
    load_checkpoint(path, other, other_optimizer, other_average)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other_average.model.weight, average.model.weight)
    assert other_average.steps == 1
    moments = [next(iter(o.state.values()))["exp_avg"] for o in (optimizer, other_optimizer)]
    assert torch.equal(*moments)


def test_a_checkpoint_of_something_else_is_named(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"is not a checkpoint of katlib\.train"):
        load_checkpoint(path, nn.Linear(2, 2))


RUN = """
import sys, torch
from tiny import draw_tiny
from test_train import EVERYTHING, train_small
torch.set_num_threads(1)
train_small(draw_tiny(), epochs=12, seed=5, out=sys.argv[1], resume=True, **EVERYTHING)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_at_the_same_numbers(tmp_path):
    """kill -9 at any moment: the next start goes on from a whole checkpoint."""
    unbroken = train_small(draw_tiny(), epochs=12, seed=5, **EVERYTHING)
    kills = 0
    for _ in range(50):
        kills += start_and_kill(tmp_path)
        if (tmp_path / "result.json").exists():
            break
    assert kills >= 2
    record = json.loads((tmp_path / "result.json").read_text())
    assert of_epochs(record, "epoch") == list(range(1, 13))
    for got, expected in zip(metrics(record), metrics(unbroken)):
        assert got == pytest.approx(expected, rel=1e-5)


def start_and_kill(folder: Path) -> bool:
    """Goes on with `RUN` and kills it after four more epochs; returns whether it still ran."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], env=environment())
    enough = count_lines(folder) + 4
    deadline = time.monotonic() + 120
    while process.poll() is None and count_lines(folder) < enough and time.monotonic() < deadline:
        time.sleep(0.0003)
    still_running = process.poll() is None
    if still_running:
        process.send_signal(signal.SIGKILL)
    process.wait()
    return still_running


def count_lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


# a limit on the size of files stands in for the disk: there is no room for a checkpoint of 2.6 MB
# beside the one before
FULL_DISK = """
import resource, signal, sys
from tiny import draw_tiny
from katlib.train import __main__ as cli, loop

loop.load_cifar10 = lambda progress: draw_tiny()


def fill_the_disk(model, metrics):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


whole = loop.train
loop.train = lambda **options: whole(**options | {"on_epoch": fill_the_disk})
cli.main(["--preset", "cifar-pico", "--epochs", "2", "--out", sys.argv[1], "--device", "cpu"])
"""


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """A run whose disk is full after one epoch: its folder, and how its process ended."""
    folder = tmp_path_factory.mktemp("full")
    process = run_python("-c", FULL_DISK, str(folder), capture_output=True, text=True)
    return SimpleNamespace(folder=folder, process=process)


@pytest.mark.slow
def test_a_full_disk_ends_with_a_message(full_disk):
    assert full_disk.process.returncode == 1
    assert "katlib.train: " in full_disk.process.stderr
    assert "File too large" in full_disk.process.stderr
    assert "Traceback" not in full_disk.process.stderr


@pytest.mark.slow
def test_a_full_disk_leaves_a_whole_checkpoint_and_no_part_of_one(full_disk):
    config = PRESETS["cifar-pico"]
    model = build_model(config, "grkan")
    path = full_disk.folder / "checkpoint.safetensors"
    state = load_checkpoint(path, model, build_optimizer(model, config))
    assert [epoch["epoch"] for epoch in state["history"]] == [1]
    assert not list(full_disk.folder.glob("*.part"))


# ---- several processes

DISTRIBUTED = """
import sys, torch
from torch import distributed
from tiny import draw_tiny
from test_train import train_small
torch.set_num_threads(1)
distributed.init_process_group("gloo")
models = []
record = train_small(
    draw_tiny(), epochs=2, seed=1, batch_size=20, mixup=0.4, out=sys.argv[1],
    on_epoch=lambda model, metrics: models.append(model),
)
if distributed.get_rank() == 0:
    torch.save(models[-1].state_dict(), sys.argv[1] + "/weights.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A run of one process and the same of two, each with its record and its weights.

    Batches of 20 from 64 images, so that the last, of 4, and those of 20 are both shared out.
    """
    folder = tmp_path_factory.mktemp("two")
    options = dict(epochs=2, seed=1, batch_size=20, mixup=0.4)
    models = []
    one = train_small(draw_tiny(), on_epoch=lambda model, _: models.append(model), **options)
    program = folder / "run.py"
    program.write_text(DISTRIBUTED)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = ["--master-port", str(free_port())]
    run_python(*launcher, *port, str(program), str(folder), check=True)
    return SimpleNamespace(
        one=one,
        one_weights=models[-1].state_dict(),
        two=json.loads((folder / "result.json").read_text()),
        two_weights=torch.load(folder / "weights.pt", weights_only=True),
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_a_record_says_how_many_processes_there_were(two_processes):
    assert two_processes.one["processes"] == 1
    assert two_processes.two["processes"] == 2


@pytest.mark.slow
def test_two_processes_have_the_metrics_of_one(two_processes):
    for got, expected in zip(metrics(two_processes.two), metrics(two_processes.one)):
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(two_processes):
    for name, expected in two_processes.one_weights.items():
        got = two_processes.two_weights[name]
        if name.endswith("qkv.bias"):
            # the bias of the keys changes nothing: Adam moves it by rounding errors
            got, expected = (torch.cat((bias[:16], bias[32:])) for bias in (got, expected))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-5, msg=name)


RAGGED = """
import sys
import torch
from torch import distributed
from tiny import draw_tiny
from test_train import train_small
torch.set_num_threads(1)
distributed.init_process_group("gloo")
train_small(draw_tiny(), limit=33, batch_size=16, out=sys.argv[1], epochs=1)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_process_may_have_no_image_of_the_last_batch(tmp_path):
    """33 images in batches of 16: one is left, and two processes."""
    program = tmp_path / "run.py"
    program.write_text(RAGGED)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = ["--master-port", str(free_port())]
    run_python(*launcher, *port, str(program), str(tmp_path), check=True)
    two = json.loads((tmp_path / "result.json").read_text())
    one = train_small(draw_tiny(), limit=33, batch_size=16, epochs=1)
    assert metrics(two)[0] == pytest.approx(metrics(one)[0], rel=1e-4)


def test_more_processes_than_images_in_a_batch_are_refused(tiny_data, monkeypatch):
    monkeypatch.setattr(loop, "processes", lambda: (0, 17))
    with pytest.raises(ValueError, match="batch_size=16 is too small for 17 processes"):
        train_small(tiny_data)


# ---- precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_takes_nearly_the_same_steps(tiny_data, precision):
    full = train_small(tiny_data, epochs=1)
    mixed = train_small(tiny_data, epochs=1, precision=precision)
    assert mixed["epochs"][0]["train_loss"] != full["epochs"][0]["train_loss"]
    assert mixed["epochs"][0]["train_loss"] == pytest.approx(
        full["epochs"][0]["train_loss"], rel=0.02
    )


@pytest.mark.parametrize(
    "precision, kind, native, expected",
    [
        ("auto", "cpu", False, None),
        ("auto", "cuda", True, torch.bfloat16),
        # Colab's T4
        ("auto", "cuda", False, torch.float16),
        ("bf16", "cpu", False, torch.bfloat16),
        ("float32", "cuda", True, None),
    ],
)
def test_auto_takes_what_the_device_computes_in(monkeypatch, precision, kind, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert loop.autocast_dtype(precision, torch.device(kind)) == expected


def test_a_gradient_that_overflows_in_fp16_is_skipped_and_not_fatal(tiny_data, monkeypatch):
    scaler = torch.amp.GradScaler
    huge = 2.0**40
    scales = []

    def with_huge_scale(device, enabled):
        made = scaler(device, init_scale=huge, enabled=enabled)
        scales.append(made)
        return made

    monkeypatch.setattr(torch.amp, "GradScaler", with_huge_scale)
    train_small(tiny_data, epochs=3, precision="fp16")
    assert scales[0].get_scale() < huge


def test_the_scale_of_the_loss_is_kept_for_a_resumed_run(tiny_data, tmp_path):
    train_small(tiny_data, epochs=1, precision="fp16", out=tmp_path)
    assert load_state(tmp_path / "checkpoint.safetensors")["scaler"]["scale"] > 1


# ---- images that are held out


def test_held_out_images_are_evaluated_and_not_trained_on(tiny_data):
    record = train_small(tiny_data, epochs=1, holdout=24)
    assert record["config"]["train_images"] == 40
    assert record["config"]["test_images"] == 24
    assert record["config"]["holdout"] == 24


def test_held_out_images_are_the_last_of_the_training_images(tiny_data):
    held = loop._held_out(tiny_data, 24)
    assert torch.equal(held.test_images, tiny_data.train_images[40:])
    assert torch.equal(held.test_labels, tiny_data.train_labels[40:])
    assert len(held.train_images) == len(held.train_labels) == 40


def test_some_images_must_be_left_to_train_on(tiny_data):
    with pytest.raises(ValueError, match="holdout=64 leaves none of the 64 training images"):
        train_small(tiny_data, holdout=64)


# ---- TensorBoard


def test_tensorboard_or_how_to_get_it(tiny_data, tmp_path):
    options = dict(epochs=1, out=tmp_path, tensorboard=True)
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install tensorboard"):
            train_small(tiny_data, "mlp", **options)
    else:
        train_small(tiny_data, "mlp", **options)
        assert list(tmp_path.glob("events.out.tfevents.*"))


class FakeWriter:
    """Keeps what TensorBoard would get."""

    def __init__(self):
        self.scalars = []
        self.closed = False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_tensorboard_gets_the_metrics_of_each_epoch(tiny_data, tmp_path, monkeypatch):
    writer = FakeWriter()
    monkeypatch.setattr(loop, "_tensorboard", lambda folder: writer)
    record = train_small(tiny_data, "mlp", epochs=2, out=tmp_path, tensorboard=True)
    assert writer.scalars == [
        (name, value, epoch["epoch"]) for epoch in record["epochs"] for name, value in epoch.items()
    ]
    assert writer.closed


# ---- the recipe


def test_the_learning_rate_rises_to_its_peak_and_falls():
    rates = [learning_rate(step, 100, SMALL) for step in range(100)]
    assert rates[0] == pytest.approx(SMALL.lr / 10)
    assert rates[9] == SMALL.lr == max(rates)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] < 0.01 * SMALL.lr


@pytest.fixture
def parameter_groups():
    """The names of the parameters that decay, and of those that do not."""
    model = build_model(SMALL, "grkan")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed: list[str] = []
    spared: list[str] = []
    for group in build_optimizer(model, SMALL).param_groups:
        own = [names[id(p)] for p in group["params"]]
        (decayed if group["weight_decay"] > 0 else spared).extend(own)
    return decayed, spared


def test_only_matrices_decay(parameter_groups):
    for name in parameter_groups[0]:
        assert name.endswith("weight")
        assert "act" not in name
        assert "norm" not in name


def test_coefficients_do_not_decay(parameter_groups):
    spared = {name.rsplit(".")[-1] for name in parameter_groups[1]}
    assert {"weight_numerator", "weight_denominator"} <= spared


def test_every_parameter_is_either_decayed_or_spared(parameter_groups):
    decayed, spared = parameter_groups
    names = [name for name, _ in build_model(SMALL, "grkan").named_parameters()]
    assert sorted(decayed + spared) == sorted(names)


def test_what_is_not_learned_is_left_out_of_the_optimizer():
    config = replace(SMALL, learned=False)
    model = build_model(config, "grkan")
    groups = build_optimizer(model, config).param_groups
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(model.parameters())) - 2 * 2 * SMALL.architecture.depth


def names_by_optimizer(model: nn.Module, config: Config) -> list[set[str]]:
    """The names of the parameters that AdamW and Muon have."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in build_optimizer(model, config).optimizers
    ]


@needs_muon
@pytest.mark.parametrize("mlp", MLPS)
def test_muon_has_the_matrices_of_the_blocks_and_nothing_else(mlp):
    config = SMALL.replace(mlp=mlp, optimizer="muon", stem="conv", global_pool="seq")
    model = build_model(config)
    adamw, muon = names_by_optimizer(model, config)
    expected = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("blocks.") and isinstance(module, nn.Linear)
    }
    assert muon == expected
    assert adamw == {name for name, _ in model.named_parameters()} - expected


@needs_muon
def test_muon_never_has_the_coefficients():
    config = SMALL.replace(optimizer="muon")
    model = build_model(config)
    _, muon = names_by_optimizer(model, config)
    assert model.blocks[0].mlp.act2.weight_denominator.ndim == 2
    assert not [name for name in muon if ".act" in name]


@needs_muon
def test_each_optimizer_has_its_own_learning_rate():
    config = SMALL.replace(optimizer="muon", lr=0.1, muon_lr=0.5, coefficient_lr=3.0)
    optimizer = build_optimizer(build_model(config), config)
    set_learning_rates(optimizer, 4, 100, config)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.05, 0.05, 0.15, 0.25]
    )


def test_without_muon_in_torch_the_error_says_which_version_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    config = SMALL.replace(optimizer="muon")
    with pytest.raises(ValueError, match=r"needs torch 2\.9 or newer; this is"):
        build_optimizer(build_model(config), config)


def test_coefficients_wait_until_their_share_of_the_steps():
    config = replace(SMALL, frozen_until=0.5)
    optimizer = build_optimizer(build_model(config), config)
    rates = []
    for step in (49, 50):
        set_learning_rates(optimizer, step, 100, config)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0][2] == 0.0
    assert rates[0][0] > 0
    assert rates[1][2] == rates[1][0] > 0


def test_a_frozen_start_leaves_the_coefficients_as_they_are(tiny_data):
    starts = train_small(tiny_data, epochs=1, learned=False)["activations"]
    frozen = train_small(tiny_data, epochs=1, frozen_until=1.0)["activations"]
    assert frozen == starts


def test_coefficients_may_decay():
    config = replace(SMALL, coefficient_decay=0.3)
    groups = build_optimizer(build_model(config), config).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.3]


def test_the_linear_schedule_ends_at_zero():
    config = replace(SMALL, schedule="linear")
    rates = [schedule(step, 100, config) for step in range(101)]
    assert rates[9] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == 0


def test_the_weights_have_the_standard_deviation_that_was_asked_for():
    model = build_model(SMALL.replace(embed_dim=64, weight_std=0.02), "grkan")
    assert model.blocks[1].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_one_function_for_each_channel():
    model = build_model(SMALL.replace(groups=None, numerator_groups=None), "grkan")
    assert model.blocks[0].mlp.act2.weight_numerator.shape == (64, 6)


def test_another_start_of_the_functions():
    model = build_model(SMALL.replace(act_init=("identity", "released-gelu")), "grkan")
    released = model.blocks[0].mlp.act2
    assert released(torch.full((1, 64), 3.0))[0, 0].item() == pytest.approx(1.53, abs=0.01)


RECIPES = [
    dict(),
    EVERYTHING,
    dict(rand_augment=2),
    dict(mixup=1.0),
    dict(cutmix=1.0),
    dict(cutout=8),
]


def prepare_tiny(data: CIFAR10, config: Config, seed: int):
    generator = torch.Generator().manual_seed(1)
    return prepare(data.train_images, data.train_labels, config, generator, seed=seed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_is_the_same_in_every_process(tiny_data, recipe):
    config = SMALL.replace(**recipe)
    x, y = prepare_tiny(tiny_data, config, seed=7)
    # what else a process draws is its own affair
    torch.rand(3)
    x_again, y_again = prepare_tiny(tiny_data, config, seed=7)
    assert torch.equal(x, x_again)
    assert torch.equal(y, y_again)
    assert x.shape == (64, 3, 32, 32)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("recipe", RECIPES)
def test_preparing_a_batch_leaves_the_global_generator_as_it_was(tiny_data, recipe):
    before = torch.get_rng_state()
    prepare_tiny(tiny_data, SMALL.replace(**recipe), seed=7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recipe", RECIPES)
def test_another_seed_gives_another_batch_if_the_recipe_draws(tiny_data, recipe):
    config = SMALL.replace(**recipe)
    x, _ = prepare_tiny(tiny_data, config, seed=7)
    other, _ = prepare_tiny(tiny_data, config, seed=8)
    # shifts, mirror images and cutout draw from the generator, which is the same here
    assert torch.equal(x, other) == (recipe.keys() <= {"cutout"})


def test_the_seed_of_a_run_is_in_what_its_steps_draw(tiny_data, monkeypatch):
    seeds = []

    def note_seed(images, labels, config, generator, seed, **statistics):
        seeds.append(seed)
        return prepare(images, labels, config, generator, seed, **statistics)

    monkeypatch.setattr(loop, "prepare", note_seed)
    for seed in (0, 1):
        train_small(tiny_data, epochs=1, limit=32, seed=seed)
    assert len(set(seeds)) == 4


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES if {"mixup", "cutmix"} & set(recipe)]
)
def test_mixed_targets_are_probabilities(tiny_data, recipe):
    _, y = prepare_tiny(tiny_data, SMALL.replace(**recipe), seed=7)
    assert y.shape == (64, 10)
    assert torch.allclose(y.sum(1), torch.ones(64))


@pytest.mark.parametrize("recipe", [dict(), dict(rand_augment=2)])
def test_targets_that_are_not_mixed_are_the_labels(tiny_data, recipe):
    _, y = prepare_tiny(tiny_data, SMALL.replace(**recipe), seed=7)
    assert torch.equal(y, tiny_data.train_labels)


# ---- the config


def test_every_field_has_one_flat_name():
    paths = list(FLAT_NAMES.values())
    recipe = [path for path in paths if "." not in path]
    assert len(set(paths)) == len(paths)
    assert {"architecture", *recipe} == set(Config.__dataclass_fields__)


def test_the_flat_names_are_the_keys_of_the_stored_records():
    (run, *_) = stored_runs(preset="cifar-nano")
    names = [*Config().as_dict(), "epochs", "train_images", "test_images"]
    # a record of an older commit has fewer
    assert [name for name in names if name in run["config"]] == list(run["config"])


def test_flat_values_are_as_json_has_them():
    flat = SMALL.as_dict()
    assert flat["degrees"] == [5, 4]
    assert flat["act_init"] == ["identity", "swish"]
    assert json.loads(json.dumps(flat)) == flat


def test_flat_names_reach_the_architecture_and_the_recipe():
    config = Config().replace(mlp="mlp", drop=0.1, drop_path=0.2, depth=3, lr=0.5)
    architecture = config.architecture
    assert (architecture.drop_rate, architecture.drop_path_rate) == (0.1, 0.2)
    assert (architecture.depth, architecture.mlp, config.lr) == (3, "mlp", 0.5)


def test_flat_values_make_the_same_config_again():
    config = SMALL.replace(**EVERYTHING, groups=None, degrees=(3, 2))
    assert Config().replace(**config.as_dict()) == config


def test_the_twin_may_have_a_width_that_groups_do_not_divide():
    config = SMALL.replace(mlp="mlp", embed_dim=18)
    assert build_model(config).blocks[0].mlp.fc1.weight.shape == (72, 18)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_of_images_of_cifar10(preset):
    architecture = PRESETS[preset].architecture
    assert (architecture.img_size, architecture.num_classes) == (32, 10)


def test_a_config_of_a_twin_trains_the_twin(tiny_data):
    config = SMALL.replace(mlp="mlp")
    record = train(config, epochs=1, limit=16, data=tiny_data, progress=False, device="cpu")
    assert record["mlp"] == "mlp"
    assert record["activations"] == {}


def test_a_start_that_json_cannot_hold_is_refused_before_training():
    with pytest.raises(ValueError, match="storable as JSON"):
        SMALL.replace(act_init=("identity", torch.zeros(2)))


def test_an_architecture_for_other_images_is_refused(tiny_data):
    config = Config(architecture=Architecture())
    with pytest.raises(ValueError, match="has img_size=224; for these images it is 32"):
        train(config, data=tiny_data)


def test_a_config_fits_other_images_and_classes():
    sizes = {"img_size": 28, "in_chans": 1, "num_classes": 26}
    architecture = Config().fit(sizes, "mlp", patch_size=7).architecture
    assert {name: getattr(architecture, name) for name in sizes} == sizes
    assert (architecture.mlp, architecture.patch_size) == ("mlp", 7)


IMPOSSIBLE = [
    (dict(patch_size=0), "patch_size=0; allowed are whole numbers"),
    (dict(num_heads=0), "num_heads=0; allowed are whole numbers"),
    (dict(num_heads=5), "num_heads=5 does not divide embed_dim=16"),
    (dict(depth=10**7), "depth=10000000; allowed are whole numbers, 1 to 1000"),
    (dict(groups=7), "groups=7 does not divide embed_dim=16"),
    (dict(drop=1.5), "drop_rate=1.5; allowed are numbers, 0 to 1"),
    (dict(batch_size=0), "batch_size=0; allowed are whole numbers, 1 or more"),
    (dict(batch_size=1.5), "batch_size=1.5; allowed are whole numbers, 1 or more"),
    (dict(lr=math.nan), "lr=nan; allowed are numbers, 0 or more"),
    (dict(lr=math.inf), "lr=inf; allowed are numbers, 0 or more"),
    (dict(lr="1e-3"), "lr='1e-3'; allowed are numbers, 0 or more"),
    (dict(clip_grad=-1), "clip_grad=-1; allowed are numbers, 0 or more"),
    (dict(warmup=2), "warmup=2; allowed are numbers, 0 to 1"),
    (dict(magnitude=31), "magnitude=31; allowed are whole numbers, 0 to 30"),
    (dict(rand_augment=True), "rand_augment=True; allowed are whole numbers, 0 to 100"),
    (dict(weight_std=-0.02), "weight_std=-0.02; allowed are numbers, 0 or more"),
    (dict(learned=1), "learned=1; allowed are True and False"),
    (dict(optimizer="sgd"), "optimizer='sgd' is not known; allowed are 'adamw', 'muon'"),
    (dict(precision="int8"), "precision='int8' is not known; allowed are 'auto', 'float32'"),
    (dict(schedule=3), "schedule=3 is not known"),
    (dict(stem="convolution"), "stem='convolution' is not known; allowed are 'patch', 'conv'"),
    (dict(stem="conv", patch_size=1), "patch_size=1; with stem='conv' allowed are powers of 2"),
    (dict(cutout=33), "cutout=33; allowed are whole numbers, 0 to 32"),
    (dict(shift=33), "shift=33; allowed are whole numbers, 0 to 32"),
    (dict(rand_augment=10**9), "rand_augment=1000000000; allowed are whole numbers, 0 to 100"),
    (dict(mixup=1e-300), "mixup=1e-300; allowed are 0 for none, and 0.0001 or more"),
    (dict(degrees=(10**9, 4)), "degrees=1000000000; allowed are whole numbers, 0 to 100000"),
    (dict(frozen_until=1.5), "frozen_until=1.5; allowed are numbers, 0 to 1"),
]


@pytest.mark.parametrize("changes, words", IMPOSSIBLE)
def test_an_impossible_value_is_one_sentence(changes, words):
    with pytest.raises(ValueError) as caught:
        SMALL.replace(**changes)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(preset="cifar-huge"), "'cifar-huge' is not known; allowed are 'cifar-pico', 'cifar"),
        (dict(epochs=0), "epochs=0"),
        (dict(epochs=math.nan), "epochs=nan; allowed are whole numbers"),
        (dict(seed=-1), "seed=-1; allowed are whole numbers, 0 to 4294967295"),
        (dict(seed=10**30), "seed=1000000000000000000000000000000; allowed"),
        (dict(device="gpu"), "device='gpu' cannot be used: Expected one of cpu, cuda"),
        (dict(device="cuda:99"), "device='cuda:99' cannot be used: "),
        (dict(device="meta"), "device='meta' cannot be used: "),
        (dict(init_from=""), "init_from is empty"),
        (dict(limit=0), "limit=0"),
        (dict(test_limit=-1), "test_limit=-1"),
        (dict(resume=True), "needs out="),
        (dict(tensorboard=True), "needs out="),
        (dict(group=4), "'group'. are not fields of Config; it has patch_size, embed_dim"),
        (dict(mlp="kan"), "allowed are 'grkan', 'mlp', 'swiglu'"),
        (dict(holdout=-1), "holdout=-1; allowed are whole numbers"),
        (dict(act_init=("swosh", "swish")), "swosh"),
        (dict(depth=10**7), "depth=10000000"),
    ],
)
def test_a_bad_option_is_refused_before_the_data_are_read(monkeypatch, options, words):
    def no_data(progress):
        pytest.fail("the data were read")

    monkeypatch.setattr(loop, "load_cifar10", no_data)
    with pytest.raises(ValueError, match=words):
        train(**{"progress": False} | options)


# ---- the command line

COMMAND = (
    "--preset cifar-nano --mlp grkan --epochs 2 --seed 3 --limit 32 --test-limit 16 "
    "--batch-size 8 --device cpu"
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A run by the command line: its record, and what it printed."""
    out = tmp_path_factory.mktemp("command") / "run"
    printed = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loop, "load_cifar10", lambda progress: draw_tiny())
        monkeypatch.setattr("builtins.print", lambda *words, **_: printed.append(*words))
        main([*COMMAND.split(), "--out", str(out)])
    record = json.loads((out / "result.json").read_text())
    return SimpleNamespace(record=record, printed="\n".join(printed), out=out)


def test_the_command_line_prints_a_line_for_each_epoch(command):
    assert "epoch 1/2" in command.printed
    assert "epoch 2/2" in command.printed
    assert "test accuracy" in command.printed


def test_the_command_line_prints_size_and_place(command):
    assert "809,658 parameters" in command.printed
    assert f"record in {command.out / 'result.json'}" in command.printed


def test_a_record_has_its_keys_in_their_order(command):
    assert list(command.record) == [
        "preset",
        "mlp",
        "seed",
        "config",
        "epochs",
        "test_accuracy",
        "wall_s",
        "parameters",
        "processes",
        "device_name",
        "torch",
        "commit",
        "date",
        "data_sha256",
        "activations",
    ]


def test_the_metrics_of_an_epoch_have_their_keys_in_their_order(command):
    assert list(command.record["epochs"][0]) == [
        "epoch",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "lr",
        *TIMES,
    ]


def test_the_flags_reach_the_run(command):
    record = command.record
    assert record["seed"] == 3
    assert len(record["epochs"]) == 2
    assert record["config"]["train_images"] == 32
    assert record["config"]["batch_size"] == 8


def test_a_record_says_what_it_was_made_with(command):
    assert command.record["torch"] == torch.__version__
    assert len(command.record["activations"]) == 8
    assert 0 <= command.record["test_accuracy"] <= 1


@pytest.mark.parametrize("name", FLAT_NAMES)
def test_every_flat_name_has_a_flag(name):
    flag = f"--{name.replace('_', '-')}"
    assert f"  {flag}" in parser().format_help()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("", {}),
        ("--groups channel", {"groups": None}),
        ("--groups 4 --numerator-groups channel", {"groups": 4, "numerator_groups": None}),
        ("--degrees 7 6", {"degrees": [7, 6]}),
        ("--act-init gelu swish", {"act_init": ["gelu", "swish"]}),
        ("--no-learned", {"learned": False}),
        ("--weight-std 0.02 --clip-grad 0", {"weight_std": 0.02, "clip_grad": 0.0}),
        ("--drop 0.1 --drop-path 1", {"drop": 0.1, "drop_path": 1.0}),
    ],
)
def test_flags_of_the_recipe_are_values_of_a_config(arguments, expected):
    options = vars(parser().parse_args(arguments.split()))
    assert {name: value for name, value in options.items() if name in FLAT_NAMES} == expected


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--patch-size 0", r"^katlib\.train: patch_size=0; allowed are whole numbers"),
        ("--num-heads 0", r"^katlib\.train: num_heads=0; allowed are whole numbers"),
        ("--depth 10000000", r"^katlib\.train: depth=10000000; allowed are whole numbers"),
        ("--batch-size 0", r"^katlib\.train: batch_size=0; allowed are whole numbers"),
    ],
)
def test_impossible_flags_are_one_sentence(flags, words, tmp_path):
    with pytest.raises(SystemExit, match=words):
        main([*flags.split(), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    "error, raised",
    [
        (NotDownloaded("it is not here"), SystemExit("katlib.train: it is not here")),
        (MemoryError("it is too large"), SystemExit("katlib.train: it is too large")),
        # a mistake of ours, whose traceback is needed
        (RuntimeError("shapes differ"), RuntimeError("shapes differ")),
    ],
)
def test_the_command_line_says_what_the_user_can_mend(monkeypatch, tmp_path, error, raised):
    def no_data(progress):
        raise error

    monkeypatch.setattr(loop, "load_cifar10", no_data)
    with pytest.raises(type(raised), match=f"^{raised}$"):
        main(["--out", str(tmp_path)])


def test_a_model_that_does_not_fit_into_memory_is_said(monkeypatch):
    def build_too_large(config: Config) -> nn.Module:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 400 GB")

    monkeypatch.setattr(start, "build_model", build_too_large)
    with pytest.raises(MemoryError, match="a model of 10,290 parameters does not fit into memory"):
        start.new_model(SMALL, 0, torch.device("cpu"))


# ---- all flags

FLAGS = sorted(set(re.findall(r"--[a-z-]+", parser().format_usage())) - {"--help"})
PAIRS = ("--degrees", "--act-init")
SWITCHES = ("--resume", "--compile", "--tensorboard", "--learned", "--no-learned")
TEXTS = ("--out", "--device", "--images", "--init-from")
NUMBERS = sorted(
    set(FLAGS)
    - {*SWITCHES, *TEXTS, "--preset", "--mlp", "--stem", "--global-pool"}
    # the names of starts are known to the rational functions, when they are built
    - {"--optimizer", "--schedule", "--precision", "--act-init"}
)
IMPOSSIBLE_VALUES = ("-1", "nan", "inf", "", "word")


class Reached(Exception):
    """All arguments were allowed."""


def answer_to(monkeypatch, capsys, folder: Path, *arguments: str) -> str:
    """What the command line says to arguments that it refuses; it trains nothing."""

    def refuse_to_build(config: Config) -> nn.Module:
        raise Reached

    monkeypatch.setattr(start, "build_model", refuse_to_build)
    monkeypatch.chdir(folder)
    with pytest.raises((SystemExit, Reached)) as caught:
        main(list(arguments))
    if caught.type is Reached:
        return ""
    # argparse prints the usage and its sentence, and gives a number
    code = caught.value.code
    return code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", [*IMPOSSIBLE_VALUES, "0", "1e9", "1000000000"])
def test_a_flag_is_obeyed_or_refused_in_one_sentence(monkeypatch, capsys, tmp_path, flag, value):
    values = [] if flag in SWITCHES else [value] * (2 if flag in PAIRS else 1)
    answer = answer_to(monkeypatch, capsys, tmp_path, flag, *values)
    assert "\n" not in answer
    assert answer == "" or "katlib.train: " in answer


@pytest.mark.parametrize("flag", NUMBERS)
@pytest.mark.parametrize("value", IMPOSSIBLE_VALUES)
def test_an_impossible_number_is_refused_with_its_flag(monkeypatch, capsys, tmp_path, flag, value):
    values = [value] * (2 if flag in PAIRS else 1)
    answer = answer_to(monkeypatch, capsys, tmp_path, flag, *values)
    assert flag.removeprefix("--").replace("-", "_") in answer.replace("-", "_")


@pytest.mark.parametrize("flag", TEXTS)
def test_an_empty_text_is_refused(monkeypatch, capsys, tmp_path, flag):
    answer = answer_to(monkeypatch, capsys, tmp_path, flag, "")
    assert flag in answer


@pytest.mark.parametrize("arguments", ["--group 4", "--res", "--img 64"])
def test_an_abbreviation_is_not_understood(monkeypatch, capsys, tmp_path, arguments):
    answer = answer_to(monkeypatch, capsys, tmp_path, *arguments.split())
    assert "unrecognized arguments: --" in answer


def interrupt(**_):
    raise KeyboardInterrupt


def test_the_home_in_a_folder_is_expanded(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train_small(tiny_data, "mlp", epochs=1, out="~/run", limit=16)
    assert (tmp_path / "run" / "result.json").exists()


def test_ctrl_c_says_how_to_go_on(tiny_data, tmp_path, monkeypatch):
    def save_and_interrupt(*arguments):
        save_checkpoint(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "load_cifar10", lambda progress: tiny_data)
    monkeypatch.setattr(loop, "save_checkpoint", save_and_interrupt)
    with pytest.raises(SystemExit, match="--resume` goes on after the last whole epoch"):
        main(["--preset", "cifar-pico", "--epochs", "2", "--out", str(tmp_path), "--device", "cpu"])


def test_ctrl_c_in_the_first_epoch_says_that_there_is_nothing_to_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "load_cifar10", interrupt)
    with pytest.raises(SystemExit, match="no epoch was whole yet"):
        main(["--out", str(tmp_path)])


def test_the_folder_is_named_after_the_run_by_default(monkeypatch, tmp_path, capsys):
    options = {}

    def fake_train(**given):
        options.update(given)
        return {"parameters": 1, "test_accuracy": 0.5, "wall_s": 1}

    monkeypatch.setattr(loop, "train", fake_train)
    main(["--mlp", "mlp", "--seed", "7"])
    assert Path(options["out"]) == Path("runs/cifar-nano-mlp-seed7")


@pytest.mark.slow
def test_the_command_line_loads_nothing_twice():
    """Python warns if a module that it runs has been imported before."""
    arguments = ["-W", "error::RuntimeWarning", "-m", "katlib.train", "--help"]
    process = run_python(*arguments, capture_output=True, text=True)
    assert process.returncode == 0
    assert process.stderr == ""
    assert "--rand-augment" in process.stdout


@pytest.mark.slow
def test_torchrun_starts_the_command_line(tmp_path):
    """Two processes by the command line, of which one prints and writes."""
    code = (
        "from tiny import draw_tiny; from katlib.train import loop; "
        "from katlib.train.__main__ import main; "
        "loop.load_cifar10 = lambda progress: draw_tiny(); "
        f"main({[*COMMAND.split(), '--out', str(tmp_path)]})"
    )
    program = tmp_path / "run.py"
    program.write_text(code)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = ["--master-port", str(free_port())]
    process = run_python(*launcher, *port, str(program), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("epoch 2/2") == 1
    assert json.loads((tmp_path / "result.json").read_text())["processes"] == 2


# ---- stored runs


@pytest.fixture
def stored_folder(tmp_path):
    """Two records of training and another file."""
    for seed, accuracy in ((0, 0.5), (1, 0.6)):
        record = {"mlp": "grkan", "seed": seed, "test_accuracy": accuracy}
        (tmp_path / f"run{seed}.json").write_text(json.dumps(record))
    (tmp_path / "kernel.json").write_text(json.dumps({"milliseconds": 1}))
    return tmp_path


def test_stored_runs_are_the_records_of_training(stored_folder):
    assert [run["seed"] for run in stored_runs(stored_folder)] == [0, 1]


def test_stored_runs_of_one_seed(stored_folder):
    assert len(stored_runs(stored_folder, seed=1)) == 1


def test_stored_runs_in_a_table(stored_folder):
    columns = {"accuracy <": lambda run: f"{run['test_accuracy']:.1%}"}
    shown = table(stored_runs(stored_folder), columns, "two runs")._repr_html_()
    assert "<td>60.0%</td>" in shown
    assert "accuracy &lt;" in shown


def test_stored_runs_that_are_missing_come_with_the_repository(tmp_path):
    with pytest.raises(FileNotFoundError, match="come with the book's repository"):
        stored_runs(tmp_path / "missing")


BOOKS_RUNS = stored_runs(preset="cifar-nano")

each_of_the_books_runs = pytest.mark.parametrize(
    "run", BOOKS_RUNS, ids=[f"{run['mlp']}-{len(run['epochs'])}" for run in BOOKS_RUNS]
)


def test_the_book_has_runs_of_both_kinds():
    assert {run["mlp"] for run in BOOKS_RUNS} == {"grkan", "mlp"}


@each_of_the_books_runs
def test_a_run_of_the_book_is_of_the_model_that_it_says(run):
    model = build_model(PRESETS["cifar-nano"], run["mlp"])
    assert run["parameters"] == sum(p.numel() for p in model.parameters())


@each_of_the_books_runs
def test_a_run_of_the_book_is_of_the_real_data(run):
    assert run["data_sha256"] == DATA_SHA256


@each_of_the_books_runs
def test_a_run_of_the_book_is_complete(run):
    assert len(run["epochs"]) == run["config"]["epochs"]
    assert run["epochs"][-1]["test_accuracy"] == run["test_accuracy"]


@each_of_the_books_runs
def test_a_run_of_the_book_is_of_a_commit_without_changes(run):
    assert not run["commit"].endswith("+")
    assert run["commit"] != "unknown"


def test_a_user_without_a_name_gets_one(monkeypatch):
    def no_name():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", no_name)
    # set first, so that it is put back in any case
    monkeypatch.setenv("USER", "")
    command_line.name_the_user()
    assert os.environ["USER"] == f"user-{os.getuid()}"


def test_a_user_with_a_name_keeps_it(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.delenv("USER", raising=False)
    command_line.name_the_user()
    assert "USER" not in os.environ


@pytest.mark.parametrize("is_terminal", [True, False])
def test_there_is_a_bar_on_a_terminal_only(monkeypatch, tmp_path, is_terminal):
    given = {}

    def note(**options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", note)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert given["progress"] is is_terminal
