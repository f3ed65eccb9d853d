"""What a trained KAT has learned: the recorder's coefficients are the model's, its histograms and statistics those of the inputs."""

import json

import pytest
import torch
from torch import nn

import katlib
from katlib.book import recorder as inside
from katlib.book.recorder import STATISTICS, Recorder
from katlib.train import train
from katlib.train.recipe import Config, build_model

SMALL = Config(patch_size=8, embed_dim=16, depth=2, num_heads=2, batch_size=16, lr=3e-3)
NAMES = [f"blocks.{block}.mlp.act{act}" for block in (0, 1) for act in (1, 2)]


class Known(nn.Module):
    """Gives its rational function a known input, whatever the images are."""

    def __init__(self, x, **options):
        super().__init__()
        self.act, self.x = katlib.GroupRational(x.shape[-1], **options), x

    def forward(self, images):
        return self.act(self.x)


def images(n=2):
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)


def test_the_histogram_of_a_known_input():
    x = torch.tensor(
        [
            [-6.0, -6.01, 5.99, 6.0],
            [0.0, -0.01, 0.49, 100.0],
            [float("inf"), float("-inf"), 0.25, 0.25],
        ]
    )
    counts = inside.histogram(x, 2, (-6, 6), 24)  # bins of 0.5; channels 0, 1 and channels 2, 3
    assert counts.shape == (2, 26) and counts.sum(1).tolist() == [6, 6]
    expected = torch.zeros(2, 26, dtype=torch.long)
    for group, place, count in (
        (0, 1, 1),
        (0, 0, 2),
        (0, 13, 1),
        (0, 12, 1),
        (0, 25, 1),
        (1, 24, 1),
        (1, 25, 2),
        (1, 13, 3),
    ):
        expected[group, place] = count
    assert torch.equal(counts, expected)


def test_a_histogram_agrees_with_numpy():
    import numpy as np

    x = 2 * torch.randn(50, 7, 24)
    counts = inside.histogram(x, 3, (-4, 4), 11)
    for group, part in enumerate(x.double().split(8, dim=-1)):
        assert (
            counts[group, 1:-1].tolist()
            == np.histogram(part.numpy(), bins=11, range=(-4, 4))[0].tolist()
        )
        assert counts[group, 0] == (part < -4).sum() and counts[group, -1] == (part > 4).sum()


def test_shares_are_whole_in_proportion_and_sum_to_the_unit():
    counts = torch.tensor([[1, 1, 1], [0, 7, 0], [10**9, 1, 2 * 10**9]])
    result = inside.shares(counts)
    assert result.sum(1).tolist() == [10_000] * 3 and result.tolist() == [
        [3334, 3333, 3333],
        [0, 10_000, 0],
        [3333, 0, 6667],
    ]
    random = inside.shares(torch.randint(0, 10_000, (40, 50)), 1000)
    assert (random.sum(1) == 1000).all() and (random >= 0).all()


def test_the_record_holds_the_models_coefficients_and_the_statistics_of_its_inputs():
    torch.manual_seed(0)
    x = torch.randn(300, 24) * torch.linspace(0.5, 4, 24) + 0.3
    model = Known(x, groups=6, numerator_groups=2, init="gelu")
    recorder = Recorder(images())
    recorder(model, {"epoch": 0})
    start = [p.detach().double().clone() for p in model.act.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) / 5)
    recorder(model, {"epoch": 1, "test_accuracy": 0.123456789, "note": "dropped"})
    record = json.loads(inside.dumps(recorder.record))
    assert record == recorder.record and record["epochs"] == [
        {"epoch": 0},
        {"epoch": 1, "test_accuracy": 0.1234568},
    ]
    kept = record["functions"]["act"]
    assert all(len(values) == 2 for values in kept.values()) and kept["moved"][0] == [0] * 6
    assert (
        torch.equal(torch.tensor(kept["numerator"][1]), model.act.weight_numerator)
        and kept["numerator"][0] != kept["numerator"][1]
    )
    assert torch.equal(torch.tensor(kept["denominator"][1]), model.act.weight_denominator)
    a, b = (p.detach().double() for p in model.act.parameters())
    X = x.double()
    y = katlib.rational_reference(X, a, b)
    expected = {
        "mean": X,
        "std": X,
        "inside": (X.abs() <= 3).double(),
        "moved": (y - katlib.rational_reference(X, *start)).abs(),
        "second_moment": y**2,
    }
    for key in STATISTICS:
        per_group = [
            part.std(correction=0) if key == "std" else part.mean()
            for part in expected[key].split(4, dim=-1)
        ]
        assert kept[key][1] == pytest.approx([v.item() for v in per_group], rel=2e-5, abs=1e-6), key
    for group in range(6):
        A, B = inside.coefficients(record, "act", group)
        assert torch.equal(A.float(), model.act.weight_numerator[group // 3]) and torch.equal(
            B.float(), model.act.weight_denominator[group]
        )
        middles, weights = inside.density(record, "act", group)
        lo, *_, hi = kept["counts"][1][group]
        assert (
            len(middles) == 48
            and middles[0] == -5.875
            and weights.sum().item() == pytest.approx(1 - (lo + hi) / 10_000)
        )
    assert (
        sum(kept["counts"][1][0]) == 10_000 and kept["counts"][1][5][0] > 0
    )  # the last group has inputs below -6


def test_it_follows_a_training_run_and_leaves_it_as_it_was(tiny_data, tmp_path):
    options = dict(mlp="grkan", epochs=3, seed=3, data=tiny_data, progress=False, device="cpu")
    alone = train(SMALL, **options)
    torch.manual_seed(3)
    recorder = Recorder(tiny_data.test_images[:16], path=tmp_path / "inside.json")
    recorder(build_model(SMALL, "grkan"), {"epoch": 0})
    record = train(SMALL, on_epoch=recorder, **options)
    assert [e["test_loss"] for e in record["epochs"]] == [e["test_loss"] for e in alone["epochs"]]
    kept = inside.load_record(tmp_path / "inside.json")
    assert (
        kept == recorder.record
        and list(kept["functions"]) == NAMES
        and [e["epoch"] for e in kept["epochs"]] == [0, 1, 2, 3]
    )
    for name in NAMES:
        function = kept["functions"][name]
        assert torch.allclose(
            torch.tensor(function["numerator"][3]),
            torch.tensor(record["activations"][name]["numerator"]),
            rtol=1e-6,
        )
        assert min(function["moved"][3]) > 0 and all(
            sum(c) == 10_000 for epoch in function["counts"] for c in epoch
        )


def test_a_resumed_run_goes_on_with_the_stored_record_and_a_new_one_begins_anew(tmp_path):
    path, x = tmp_path / "inside.json", torch.randn(10, 8)
    model = Known(x, groups=2)
    for epoch in range(3):
        Recorder(images(), path)(model, {"epoch": epoch})
    Recorder(images(), path)(model, {"epoch": 2, "again": 1})
    kept = inside.load_record(path)
    assert [e["epoch"] for e in kept["epochs"]] == [0, 1, 2] and kept["epochs"][2] == {
        "epoch": 2,
        "again": 1,
    }
    assert all(len(values) == 3 for values in kept["functions"]["act"].values())
    other = nn.Sequential(Known(x, groups=2))
    with pytest.raises(ValueError, match="the record"):
        Recorder(images(), path)(other, {"epoch": 3})
    Recorder(images(), path)(other, {"epoch": 0})
    assert list(inside.load_record(path)["functions"]) == ["0.act"]


def test_what_cannot_be_recorded_is_refused():
    for bad in (images().float(), images()[0], images(0)):
        with pytest.raises(ValueError, match="uint8"):
            Recorder(bad)
    with pytest.raises(ValueError, match="lo < hi"):
        Recorder(images(), interval=(1, 1))
    with pytest.raises(ValueError, match="rational functions \\[\\]"):
        Recorder(images())(nn.Linear(2, 2), {"epoch": 0})
    with pytest.raises(ValueError, match="input of act is not finite"):
        Recorder(images())(Known(torch.tensor([[1.0, float("nan")]]), groups=1), {"epoch": 0})


def test_the_mode_of_the_model_and_its_hooks_are_put_back():
    model = build_model(SMALL, "grkan").train()
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel holds it
    recorder = Recorder(images())
    recorder(wrapped, {"epoch": 0})
    assert (
        model.training
        and all(m.training for m in model.modules())
        and list(recorder.record["functions"]) == NAMES
    )
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_long_run_of_the_small_kat_is_stored_in_less_than_600_kb():
    torch.manual_seed(0)
    recorder, model = Recorder(images(4)), build_model(Config(), "grkan")
    recorder(model, {"epoch": 0})
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(
                torch.randn(p.shape)
                * (0.3 if "weight_numerator" in name or "weight_denominator" in name else 0.05)
            )
    recorder(model, {"epoch": 1, "train_loss": 1.2345678, "test_accuracy": 0.7})
    one = len(inside.dumps(recorder.record)) - len(
        inside.dumps(recorder.record | {"epochs": [], "functions": {}})
    )
    assert one / 2 * 31 < 600_000  # the start and 30 epochs
