"""The study: its conditions are what their names say, its statistics are right, and the stored runs are whole."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from katlib.book.results import FOLDER, stored_runs
from katlib.book.statistics import compare
from katlib.train.recipe import PRESETS, build_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import study


def run(condition, seed, accuracy):
    return {
        "condition": condition,
        "title": condition.upper(),
        "seed": seed,
        "test_accuracy": accuracy,
        "parameters": 7,
    }


def test_a_comparison_is_paired_by_seed():
    accuracies = {"kat": (0.50, 0.52, 0.51), "other": (0.49, 0.50, 0.51)}
    runs = [
        run(name, seed, a) for name, values in accuracies.items() for seed, a in enumerate(values)
    ] + [run("kat", 3, 0.6)]
    kat, other = compare(runs)
    assert (
        kat.condition == "kat"
        and kat.mean == pytest.approx(0.5325)
        and kat.differences == ()
        and math.isnan(kat.p)
    )
    assert other.differences == pytest.approx(
        (-0.01, -0.02, 0.0)
    ) and other.difference == pytest.approx(-0.01)
    assert other.difference_std == pytest.approx(0.01) and other.title == "OTHER"
    t = 0.01 / (0.01 / math.sqrt(3))  # Student's t with 2 degrees of freedom has a closed form
    assert other.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # the t with P(|T| < t) = 0.95
    assert (other.low, other.high) == pytest.approx(
        (-0.01 - quantile * 0.01 / math.sqrt(3), -0.01 + quantile * 0.01 / math.sqrt(3))
    )


def test_a_comparison_needs_common_seeds():
    with pytest.raises(ValueError, match="no runs of 'kat'; there are other"):
        compare([run("other", 0, 0.5)])
    with pytest.raises(ValueError, match=r"share the seeds \[0\]"):
        compare(
            [run("kat", 0, 0.5), run("kat", 1, 0.5), run("other", 0, 0.5), run("other", 2, 0.5)]
        )


def test_the_twins_are_what_they_are_called():
    config = PRESETS["cifar-pico"]
    kat, mlp = (
        sum(p.numel() for p in build_model(config, kind).parameters()) for kind in ("grkan", "mlp")
    )
    assert 0 < kat - mlp < 0.002 * mlp
    C, hidden = 64, 256
    flops = 2 * 2 * C * hidden + 21 * (
        C + hidden
    )  # of a token in one KAT block's two layers, degrees (5, 4)
    twin = build_model(replace(config, mlp_ratio=study.equal_flops(config)), "mlp").blocks[0].mlp
    assert 2 * (twin.fc1.weight.numel() + twin.fc2.weight.numel()) == pytest.approx(
        flops, rel=0.002
    )


@pytest.mark.parametrize("name", study.CONDITIONS)
def test_a_condition_changes_what_it_says_and_nothing_else(name):
    _, mlp, fields = study.CONDITIONS[name]
    config = replace(PRESETS["cifar-pico"], **study.recipe(name, "cifar-pico"))
    assert (config == PRESETS["cifar-pico"]) == (fields == {}) and len(fields) <= 1
    torch.manual_seed(0)
    model = build_model(config, mlp)
    torch.manual_seed(0)
    base = dict(build_model(PRESETS["cifar-pico"], "grkan").named_parameters())
    for key, value in model.named_parameters():
        if ".mlp." not in key and name != "mlp-flops":  # its wider matrices take other draws
            assert torch.equal(value, base[key]), key


def test_bytes_kept_for_backward_by_hand():
    x, labels = torch.randn(128, 3, 32, 32), torch.zeros(128, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    # the input, the logarithms of the probabilities, the labels, and the sum of the labels' weights
    assert study.kept_bytes(model, x, labels) == 128 * 3072 * 4 + 128 * 10 * 4 + 128 * 8 + 4


@pytest.mark.parametrize("part", ["study", "study-again"])
def test_the_stored_study_is_whole(part):
    runs = stored_runs(FOLDER / part)
    by_condition = {}
    for r in runs:
        by_condition.setdefault(r["condition"], []).append(r)
    assert set(by_condition) == set(study.CONDITIONS if part == "study" else study.AGAIN)
    for name, some in by_condition.items():
        assert [r["seed"] for r in some] == list(
            range(5, 10) if part == "study-again" else range(5 if name in study.FIVE else 3)
        )
        title, mlp, _ = study.CONDITIONS[name]
        config = replace(
            PRESETS["cifar-pico"], **{"lr": study.LR} | study.recipe(name, "cifar-pico")
        )
        assert build_parameters(config, mlp) == some[0]["parameters"]
        for r in some:
            assert (
                r["title"] == title
                and r["mlp"] == mlp
                and r["config"]["train_images"] == 50_000
                and r["config"]["test_images"] == 10_000
            )
            assert (
                r["data_sha256"]
                == "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
            )
            assert {
                k: tuple(v) if isinstance(v, list) else v
                for k, v in r["config"].items()
                if hasattr(config, k)
            } == vars(config)
            assert (
                r["epochs"][-1]["test_accuracy"] == r["test_accuracy"]
                and len(r["epochs"]) == r["config"]["epochs"] == study.EPOCHS
            )
            assert r["commit"] != "unknown" and not r["commit"].endswith("+")


def build_parameters(config, mlp):
    return sum(p.numel() for p in build_model(config, mlp).parameters())
