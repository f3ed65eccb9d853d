"""The study of the compact model: its conditions, its order, and what it evaluates."""

import json
from types import SimpleNamespace

import compact
import pytest
import torch
from tiny import draw_tiny
from torch.utils.flop_counter import FlopCounterMode

from katlib.train.recipe import PRESETS, build_model

RATIONAL_FLOPS = 21


def model_of(name: str):
    condition = compact.CONDITIONS[name]
    return build_model(PRESETS[compact.PRESET].replace(mlp=condition.mlp, **condition.changes))


def flops_of(name: str) -> int:
    """Of an image, counted by PyTorch, and those of the rational functions."""
    model = model_of(name)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    architecture = model.architecture
    values = architecture.tokens * (architecture.embed_dim + architecture.hidden_features)
    functions = RATIONAL_FLOPS * values * architecture.depth if architecture.mlp == "grkan" else 0
    return counter.get_total_flops() + functions


@pytest.mark.parametrize("name", compact.CONDITIONS)
def test_every_condition_has_the_flops_of_the_kat(name):
    assert flops_of(name) == pytest.approx(flops_of("kat"), rel=0.003)


@pytest.mark.parametrize("name", compact.CONDITIONS)
def test_every_condition_has_at_most_600000_parameters(name):
    assert sum(p.numel() for p in model_of(name).parameters()) <= 600_000


def test_the_plan_has_four_seeds_for_the_first_four_and_three_for_the_others():
    counts = {name: sum(n == name for n, _ in compact.PLAN) for name in compact.CONDITIONS}
    assert [counts[name] for name in ("kat", "mlp-gelu", "mlp-swiglu", "kat-gelu")] == [4] * 4
    assert counts["frozen-swish"] == counts["mlp-relu2"] == counts["mlp-prelu"] == 3
    assert len(set(compact.PLAN)) == len(compact.PLAN)


def test_the_conditions_of_the_plan_are_those_of_the_study():
    assert {name for name, _ in compact.PLAN} == set(compact.CONDITIONS)
    assert {c.rates_of for c in compact.CONDITIONS.values()} <= set(compact.CONDITIONS)


def test_the_rates_are_those_that_were_best_on_held_out_images(tmp_path):
    for factor, accuracy in zip(compact.FACTORS, (0.7, 0.6, 0.8), strict=True):
        path = tmp_path / f"kat-{factor}.json"
        path.write_text(json.dumps({"test_accuracy": accuracy}), encoding="utf-8")
    assert compact.best_factor("groups-1", tmp_path) == 2.0


class Brightness(torch.nn.Module):
    """Class 1 for images that are brighter than the mean of CIFAR-10, else 0."""

    def forward(self, x):
        bright = x.mean((1, 2, 3)) > 0
        return torch.stack([~bright, bright], 1).float()


@pytest.fixture
def bright_and_dark():
    images = torch.full((8, 3, 32, 32), 20, dtype=torch.uint8)
    images[::2] = 200
    labels = torch.tensor([1, 0] * 4)
    return SimpleNamespace(test_images=images, test_labels=labels)


def test_shifts_are_evaluated_at_three_strengths(bright_and_dark):
    shifted = compact.shifted_accuracies(Brightness(), bright_and_dark)
    assert {name: len(strengths) for name, strengths in shifted.items()} == {
        "noise": 3,
        "contrast": 3,
        "blur": 3,
        "brightness": 3,
        "none": 1,
    }
    assert shifted["none"]["0"] == 1.0


def test_darker_images_are_taken_for_dark(bright_and_dark):
    shifted = compact.shifted_accuracies(Brightness(), bright_and_dark)
    assert shifted["brightness"]["0.3"] == 0.5
    assert shifted["blur"]["1.5"] == 1.0


@pytest.mark.slow
def test_a_run_leaves_a_record_with_what_was_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = compact.train_run("mlp-swiglu", 0, 1.0, 1, draw_tiny())
    assert record["condition"] == "mlp-swiglu"
    assert set(record["precision"]) == {"bf16", "fp16"}
    assert record["config"]["muon_lr"] == compact.RATES["muon_lr"]
    assert set(record["shifted"]) == {*compact.SHIFTS, "none"}
