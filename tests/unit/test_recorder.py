"""The recorder of a trained KAT.

Its coefficients are the model's, its histograms and statistics are those of the inputs.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

import katlib
from katlib.book.recorder import (
    COMPACT,
    STATISTICS,
    Recorder,
    coefficients,
    density,
    group_histogram,
    load_record,
    proportional_counts,
    round_significant,
)
from katlib.train import train
from katlib.train.recipe import Config, build_model

SMALL = Config().replace(patch_size=8, embed_dim=16, depth=2, num_heads=2, batch_size=16, lr=3e-3)
NAMES = [f"blocks.{block}.mlp.act{act}" for block in (0, 1) for act in (1, 2)]


class KnownInput(nn.Module):
    """Gives its rational function a known input, whatever the images are."""

    def __init__(self, x: torch.Tensor, **options):
        super().__init__()
        self.x = x
        self.act = katlib.GroupRational(x.shape[-1], **options)

    def forward(self, images):
        return self.act(self.x)


def images(number: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8)


def compact(record) -> str:
    return json.dumps(record, separators=COMPACT)


# ---- histograms


def test_the_histogram_of_a_known_input():
    x = torch.tensor(
        [
            [-6.0, -6.01, 5.99, 6.0],
            [0.0, -0.01, 0.49, 100.0],
            [float("inf"), float("-inf"), 0.25, 0.25],
        ]
    )
    # bins of 0.5; the groups are channels 0 and 1, and channels 2 and 3
    counts = group_histogram(x, 2, (-6, 6), 24)
    expected = torch.zeros(2, 26, dtype=torch.long)
    expected[0, 0] = 2  # -6.01 and -inf are below
    expected[0, 1] = 1  # -6.0
    expected[0, 12] = 1  # -0.01
    expected[0, 13] = 1  # 0.0
    expected[0, 25] = 1  # inf is above
    expected[1, 13] = 3  # 0.49 and twice 0.25
    expected[1, 24] = 1  # 5.99
    expected[1, 25] = 2  # 6.0 and 100.0 are above
    assert counts.shape == (2, 26)
    assert counts.sum(1).tolist() == [6, 6]
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("group", range(3))
def test_a_histogram_agrees_with_numpy(group):
    x = 2 * torch.randn(50, 7, 24)
    counts = group_histogram(x, 3, (-4, 4), 11)[group]
    values = x.double().split(8, dim=-1)[group]
    expected, _ = np.histogram(values.numpy(), bins=11, range=(-4, 4))
    assert counts[1:-1].tolist() == expected.tolist()
    assert counts[0] == (values < -4).sum()
    assert counts[-1] == (values > 4).sum()


def test_proportional_counts_are_rounded_by_largest_remainders():
    counts = torch.tensor([[1, 1, 1], [0, 7, 0], [10**9, 1, 2 * 10**9]])
    result = proportional_counts(counts)
    assert result.tolist() == [[3334, 3333, 3333], [0, 10_000, 0], [3333, 0, 6667]]
    assert result.sum(1).tolist() == [10_000] * 3


def test_proportional_counts_sum_to_the_total():
    result = proportional_counts(torch.randint(0, 10_000, (40, 50)), 1000)
    assert (result.sum(1) == 1000).all()
    assert (result >= 0).all()


@pytest.mark.parametrize("value", [1 / 3, -1.2345678e-30, 3.4e38])
def test_nine_digits_hold_every_float32(value):
    value = torch.tensor(value, dtype=torch.float32)
    assert torch.tensor(round_significant(value.item(), 9), dtype=torch.float32) == value


# ---- a record of a known input


class Recorded:
    """A function of 6 groups, recorded at its start and after a change."""

    def __init__(self):
        torch.manual_seed(0)
        self.x = torch.randn(300, 24) * torch.linspace(0.5, 4, 24) + 0.3
        self.model = KnownInput(self.x, groups=6, numerator_groups=2, init="gelu")
        recorder = Recorder(images())
        recorder(self.model, {"epoch": 0})
        self.start = self.coefficients()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn(parameter.shape) / 5)
        recorder(self.model, {"epoch": 1, "test_accuracy": 0.123456789, "note": "dropped"})
        self.live_record = recorder.record
        self.record = json.loads(compact(recorder.record))
        self.history = self.record["functions"]["act"]

    def coefficients(self):
        return [parameter.detach().double().clone() for parameter in self.model.act.parameters()]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


def test_json_holds_a_record_as_it_is(recorded):
    assert recorded.record == recorded.live_record


def test_a_record_keeps_the_numbers_among_the_metrics_to_seven_digits(recorded):
    assert recorded.record["epochs"] == [{"epoch": 0}, {"epoch": 1, "test_accuracy": 0.1234568}]


def test_a_history_has_an_entry_for_each_epoch(recorded):
    assert all(len(entries) == 2 for entries in recorded.history.values())


def test_at_the_start_nothing_has_moved(recorded):
    assert recorded.history["moved"][0] == [0] * 6


def test_the_recorded_coefficients_are_exactly_the_models(recorded):
    act = recorded.model.act
    assert torch.equal(torch.tensor(recorded.history["numerator"][1]), act.weight_numerator)
    assert torch.equal(torch.tensor(recorded.history["denominator"][1]), act.weight_denominator)
    assert recorded.history["numerator"][0] != recorded.history["numerator"][1]


@pytest.mark.parametrize("key", STATISTICS)
def test_the_recorded_statistics_are_those_of_the_inputs(recorded, key):
    x = recorded.x.double()
    y = katlib.rational_reference(x, *recorded.coefficients())
    values = {
        "mean": x,
        "std": x,
        "inside": (x.abs() <= 3).double(),
        "moved": (y - katlib.rational_reference(x, *recorded.start)).abs(),
        "second_moment": y**2,
    }[key]
    expected = [
        part.std(correction=0) if key == "std" else part.mean() for part in values.split(4, dim=-1)
    ]
    expected = [value.item() for value in expected]
    assert recorded.history[key][1] == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("group", range(6))
def test_the_coefficients_of_a_group_are_those_of_its_rows(recorded, group):
    a, b = coefficients(recorded.record, "act", group)
    assert torch.equal(a.float(), recorded.model.act.weight_numerator[group // 3])
    assert torch.equal(b.float(), recorded.model.act.weight_denominator[group])


@pytest.mark.parametrize("group", range(6))
def test_a_density_sums_to_one_less_what_is_outside(recorded, group):
    middles, shares = density(recorded.record, "act", group)
    below, *_, above = recorded.history["counts"][1][group]
    assert len(middles) == 48
    assert middles[0] == -5.875
    assert shares.sum().item() == pytest.approx(1 - (below + above) / 10_000)


def test_the_counts_sum_to_the_unit_and_include_what_is_outside(recorded):
    counts = recorded.history["counts"][1]
    assert sum(counts[0]) == 10_000
    # the last group has the widest inputs, some of them below -6
    assert counts[5][0] > 0


# ---- in a training run


class Training:
    """A run with a recorder, and the same run without."""

    def __init__(self, data, folder):
        options = dict(mlp="grkan", epochs=3, seed=3, data=data, progress=False, device="cpu")
        self.alone = train(SMALL, **options)
        torch.manual_seed(3)
        recorder = Recorder(data.test_images[:16], path=folder / "inside.json")
        recorder(build_model(SMALL, "grkan"), {"epoch": 0})
        self.result = train(SMALL, on_epoch=recorder, **options)
        self.live_record = recorder.record
        self.record = load_record(folder / "inside.json")


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Training:
    from tiny import draw_tiny

    torch.manual_seed(0)
    return Training(draw_tiny(), tmp_path_factory.mktemp("run"))


def test_a_recorder_leaves_a_training_run_as_it_was(training):
    losses = [epoch["test_loss"] for epoch in training.result["epochs"]]
    assert losses == [epoch["test_loss"] for epoch in training.alone["epochs"]]


def test_a_recorder_writes_what_it_has_recorded(training):
    assert training.record == training.live_record


def test_a_recorder_records_every_function_at_every_epoch(training):
    assert list(training.record["functions"]) == NAMES
    assert [entry["epoch"] for entry in training.record["epochs"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_entry_is_what_training_learned(training, name):
    history = training.record["functions"][name]
    learned = torch.tensor(training.result["activations"][name]["numerator"])
    assert torch.allclose(torch.tensor(history["numerator"][3]), learned, rtol=1e-6)
    assert min(history["moved"][3]) > 0
    assert all(sum(counts) == 10_000 for epoch in history["counts"] for counts in epoch)


# ---- a record that is there already


@pytest.fixture
def path(tmp_path):
    """A stored record of three epochs, each from a recorder of its own."""
    path = tmp_path / "inside.json"
    model = KnownInput(torch.randn(10, 8), groups=2)
    for epoch in range(3):
        Recorder(images(), path)(model, {"epoch": epoch})
    return path


def test_a_resumed_run_replaces_its_epoch_in_the_stored_record(path):
    Recorder(images(), path)(KnownInput(torch.randn(10, 8), groups=2), {"epoch": 2, "again": 1})
    record = load_record(path)
    assert [entry["epoch"] for entry in record["epochs"]] == [0, 1, 2]
    assert record["epochs"][2] == {"epoch": 2, "again": 1}
    assert all(len(entries) == 3 for entries in record["functions"]["act"].values())


def test_a_stored_record_is_not_continued_with_another_model(path):
    other = nn.Sequential(KnownInput(torch.randn(10, 8), groups=2))
    before = path.read_text()
    with pytest.raises(ValueError, match="the record"):
        Recorder(images(), path)(other, {"epoch": 3})
    assert path.read_text() == before


def test_a_run_from_epoch_0_replaces_the_stored_record(path):
    other = nn.Sequential(KnownInput(torch.randn(10, 8), groups=2))
    Recorder(images(), path)(other, {"epoch": 0})
    assert list(load_record(path)["functions"]) == ["0.act"]


def test_a_record_that_does_not_exist_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_record(tmp_path / "inside.json")


# ---- what is refused, and what is put back


@pytest.mark.parametrize(
    "bad", [images().float(), images()[0], images(0)], ids=["float", "one image", "none"]
)
def test_images_of_another_type_or_shape_are_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        Recorder(bad)


@pytest.mark.parametrize("options", [{"interval": (1, 1)}, {"bins": 0}])
def test_a_histogram_without_bins_is_refused(options):
    with pytest.raises(ValueError, match="lo < hi"):
        Recorder(images(), **options)


def test_a_model_without_rational_functions_is_refused():
    with pytest.raises(ValueError, match=r"rational functions \[\]"):
        Recorder(images())(nn.Linear(2, 2), {"epoch": 0})


def test_an_input_that_is_not_finite_is_refused_and_nothing_is_recorded():
    recorder = Recorder(images())
    model = KnownInput(torch.tensor([[1.0, float("nan")]]), groups=1)
    with pytest.raises(ValueError, match="input of act is not finite"):
        recorder(model, {"epoch": 0})
    assert recorder.record["epochs"] == []
    assert not model.act._forward_pre_hooks


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_and_its_hooks_are_put_back(training):
    model = build_model(SMALL, "grkan").train(training)
    Recorder(images())(model, {"epoch": 0})
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("wrapped_as", ["module", "_orig_mod"])
def test_a_wrapped_model_is_recorded_under_its_own_names(wrapped_as):
    """As `DistributedDataParallel` and `torch.compile` wrap it."""
    wrapper = nn.Module()
    setattr(wrapper, wrapped_as, build_model(SMALL, "grkan"))
    recorder = Recorder(images())
    recorder(wrapper, {"epoch": 0})
    assert list(recorder.record["functions"]) == NAMES


def test_a_long_run_of_the_small_kat_is_stored_in_less_than_600_kb():
    recorder, model = Recorder(images(4)), build_model(Config(), "grkan")
    recorder(model, {"epoch": 0})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_coefficient = "weight_numerator" in name or "weight_denominator" in name
            parameter.add_(torch.randn(parameter.shape) * (0.3 if is_coefficient else 0.05))
    recorder(model, {"epoch": 1, "train_loss": 1.2345678, "test_accuracy": 0.7})
    empty = compact(recorder.record | {"epochs": [], "functions": {}})
    an_epoch = (len(compact(recorder.record)) - len(empty)) / 2
    # the start and 30 epochs
    assert 31 * an_epoch < 600_000
