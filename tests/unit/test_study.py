"""The study: its conditions are what their names say, its statistics are right.

The runs that are stored of it are complete.
"""

import math

import numpy as np
import pytest
import study
import torch
from torch import nn

from katlib.book.results import FOLDER, stored_runs
from katlib.book.statistics import Comparison, compare, compare_with_control
from katlib.train.recipe import PRESETS, Config, build_model

PRESET = "cifar-pico"
DATA_SHA256 = "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- comparisons


def run(condition: str, seed: int, accuracy: float) -> dict:
    return {
        "condition": condition,
        "title": condition.upper(),
        "seed": seed,
        "test_accuracy": accuracy,
        "parameters": 7,
    }


def runs(condition: str, *accuracies: float) -> list[dict]:
    return [run(condition, seed, accuracy) for seed, accuracy in enumerate(accuracies)]


@pytest.fixture
def kat_and_other() -> list[Comparison]:
    """The KAT has a seed that the other condition lacks."""
    return compare(runs("kat", 0.50, 0.52, 0.51, 0.6) + runs("other", 0.49, 0.50, 0.51))


def test_the_baseline_comes_first_with_all_its_seeds_and_no_differences(kat_and_other):
    kat = kat_and_other[0]
    assert kat.condition == "kat"
    assert kat.mean == pytest.approx(0.5325)
    assert kat.differences == ()
    assert math.isnan(kat.p)


def test_differences_are_paired_by_seed(kat_and_other):
    other = kat_and_other[1]
    assert other.title == "OTHER"
    assert other.differences == pytest.approx((-0.01, -0.02, 0.0))
    assert other.difference == pytest.approx(-0.01)
    assert other.difference_std == pytest.approx(0.01)


def test_p_is_that_of_students_t(kat_and_other):
    other = kat_and_other[1]
    # with 2 degrees of freedom, Student's t has a closed form
    t = 0.01 / (0.01 / math.sqrt(3))
    assert other.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))


def test_the_interval_holds_95_percent_of_students_t(kat_and_other):
    other = kat_and_other[1]
    # the t with P(|T| < t) = 0.95 for 2 degrees of freedom
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    half_width = quantile * 0.01 / math.sqrt(3)
    assert (other.low, other.high) == pytest.approx((-0.01 - half_width, -0.01 + half_width))


def test_the_other_conditions_follow_with_the_most_favourable_first():
    found = compare(runs("bad", 0.1, 0.2) + runs("kat", 0.5, 0.5) + runs("good", 0.8, 0.9))
    assert [comparison.condition for comparison in found] == ["kat", "good", "bad"]


@pytest.mark.parametrize(
    "found, there_are", [([run("other", 0, 0.5)], "other"), ([], "none at all")]
)
def test_a_comparison_needs_runs_of_the_baseline(found, there_are):
    with pytest.raises(ValueError, match=f"no runs of 'kat'; there are {there_are}"):
        compare(found)


def test_a_comparison_needs_two_common_seeds():
    other = [run("other", 0, 0.5), run("other", 2, 0.5)]
    with pytest.raises(ValueError, match=r"share the seeds \[0\]"):
        compare(runs("kat", 0.5, 0.5) + other)


# ---- conditions


# Dunnett's own example (1955): breaking strength of fabric, a control and three processes
DUNNETT = {"kat": (55, 47, 48), "one": (55, 64, 64), "two": (55, 49, 52), "three": (50, 44, 41)}


@pytest.fixture
def against_control():
    samples = [run for name, values in DUNNETT.items() for run in runs(name, *values)]
    return compare_with_control(samples)


def test_the_control_comes_first_and_the_others_by_their_difference(against_control):
    assert [found.condition for found in against_control] == ["kat", "one", "two", "three"]
    assert [found.difference for found in against_control[1:]] == pytest.approx([11, 2, -5])


def test_the_intervals_are_those_of_dunnetts_paper(against_control):
    # pooled s^2 = 19 with 8 degrees of freedom; two-sided t of his table 2a: 2.88
    width = 2.88 * math.sqrt(19 * (1 / 3 + 1 / 3))
    for found in against_control[1:]:
        interval = found.low, found.high
        assert interval == pytest.approx(
            (found.difference - width, found.difference + width), abs=0.03
        )


def test_the_verdict_is_whether_the_interval_leaves_out_zero(against_control):
    assert [found.verdict for found in against_control[1:]] == ["better", "undecided", "undecided"]


def test_the_family_is_wrong_in_one_study_of_twenty():
    """In studies without a difference, some interval leaves out 0 in 5% of them."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        samples = generator.normal(size=(4, 3))
        drawn = [run for i, s in enumerate(samples) for run in runs("kat" if not i else f"{i}", *s)]
        wrong += any(found.verdict != "undecided" for found in compare_with_control(drawn)[1:])
    assert 2 <= wrong <= 20


@pytest.mark.parametrize(
    "found, message",
    [
        (runs("kat", 0.5, 0.6), "another condition"),
        (runs("one", 0.5, 0.6), "'kat' and of another"),
        (runs("kat", 0.5, 0.6) + runs("one", 0.5), "'one' has one run"),
    ],
)
def test_a_control_needs_others_and_every_condition_two_runs(found, message):
    with pytest.raises(ValueError, match=message):
        compare_with_control(found)


def test_the_twin_has_the_parameters_of_the_kat():
    kat, mlp = (count_parameters(build_model(PRESETS[PRESET], mlp)) for mlp in ("grkan", "mlp"))
    assert 0 < kat - mlp < 0.002 * mlp


def test_the_wider_twin_has_the_flops_of_the_kat():
    config = PRESETS[PRESET]
    channels, hidden = 64, 256
    # of a token in the two layers of one KAT block, at degrees (5, 4)
    flops = 2 * 2 * channels * hidden + 21 * (channels + hidden)
    config = config.replace(mlp="mlp", mlp_ratio=study.equal_flops(config))
    twin = build_model(config).blocks[0].mlp
    twin_flops = 2 * (twin.fc1.weight.numel() + twin.fc2.weight.numel())
    assert twin_flops == pytest.approx(flops, rel=0.002)


@pytest.mark.parametrize("name", study.CONDITIONS)
def test_a_condition_changes_at_most_one_field_of_the_preset(name):
    changes = study.CONDITIONS[name].changes
    mlp = study.CONDITIONS[name].mlp
    config = PRESETS[PRESET].replace(mlp=mlp, **study.recipe(name, PRESET))
    assert len(changes) <= 1
    assert (config == PRESETS[PRESET].replace(mlp=mlp)) == (changes == {})


# the wider matrices of "mlp-flops" take more random numbers, so that what follows differs
@pytest.mark.parametrize("name", [name for name in study.CONDITIONS if name != "mlp-flops"])
def test_outside_of_the_mlps_a_condition_starts_from_the_same_weights(name):
    torch.manual_seed(0)
    mlp = study.CONDITIONS[name].mlp
    model = build_model(PRESETS[PRESET].replace(mlp=mlp, **study.recipe(name, PRESET)))
    torch.manual_seed(0)
    base = dict(build_model(PRESETS[PRESET], "grkan").named_parameters())
    for key, value in model.named_parameters():
        if ".mlp." not in key:
            assert torch.equal(value, base[key]), key


def test_bytes_kept_for_backward_by_hand():
    x, labels = torch.randn(128, 3, 32, 32), torch.zeros(128, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    image_bytes = 128 * 3072 * 4
    log_probability_bytes = 128 * 10 * 4
    label_bytes = 128 * 8
    weight_sum_bytes = 4
    expected = image_bytes + log_probability_bytes + label_bytes + weight_sum_bytes
    assert study.kept_bytes(model, x, labels) == expected


# ---- the stored runs


def stored(part: str) -> dict[str, list[dict]]:
    """The stored runs of a part of the study, by condition."""
    by_condition: dict[str, list[dict]] = {}
    for stored_run in stored_runs(FOLDER / part):
        by_condition.setdefault(stored_run["condition"], []).append(stored_run)
    return by_condition


STORED = {part: stored(part) for part in ("study", "study-again")}

each_condition = pytest.mark.parametrize(
    "part, name", [(part, name) for part, conditions in STORED.items() for name in conditions]
)


def recipe_of(name: str):
    """The `Config` that a condition was trained with."""
    changes = {"lr": study.LR} | study.recipe(name, PRESET)
    return PRESETS[PRESET].replace(mlp=study.CONDITIONS[name].mlp, **changes)


@pytest.mark.parametrize(
    "part, conditions", [("study", study.CONDITIONS), ("study-again", study.AGAIN)]
)
def test_every_condition_is_stored(part, conditions):
    assert set(STORED[part]) == set(conditions)


@each_condition
def test_every_seed_is_stored(part, name):
    seeds = [stored_run["seed"] for stored_run in STORED[part][name]]
    if part == "study-again":
        assert seeds == [5, 6, 7, 8, 9]
    elif name in study.FIVE:
        assert seeds == [0, 1, 2, 3, 4]
    else:
        assert seeds == [0, 1, 2]


@each_condition
def test_a_stored_run_is_of_its_conditions_model(part, name):
    title, mlp, _ = study.CONDITIONS[name]
    parameters = count_parameters(build_model(recipe_of(name), mlp))
    assert STORED[part][name][0]["parameters"] == parameters
    assert {stored_run["title"] for stored_run in STORED[part][name]} == {title}
    assert {stored_run["mlp"] for stored_run in STORED[part][name]} == {mlp}


@each_condition
def test_a_stored_run_used_all_of_cifar10(part, name):
    for stored_run in STORED[part][name]:
        assert stored_run["config"]["train_images"] == 50_000
        assert stored_run["config"]["test_images"] == 10_000
        assert stored_run["data_sha256"] == DATA_SHA256


@each_condition
def test_a_stored_run_used_its_conditions_recipe(part, name):
    recipe = recipe_of(name)
    # a field that an older record lacks did not exist, and what it is by default was done
    defaults = Config().as_dict()
    for stored_run in STORED[part][name]:
        config = {key: (defaults | stored_run["config"])[key] for key in recipe.as_dict()}
        assert config == recipe.as_dict()
        extra = set(stored_run["config"]) - set(recipe.as_dict())
        assert extra == {"epochs", "train_images", "test_images"}


@each_condition
def test_a_stored_run_is_complete(part, name):
    for stored_run in STORED[part][name]:
        assert stored_run["epochs"][-1]["test_accuracy"] == stored_run["test_accuracy"]
        assert len(stored_run["epochs"]) == stored_run["config"]["epochs"] == study.EPOCHS


@each_condition
def test_a_stored_run_is_of_a_commit_without_changes(part, name):
    for stored_run in STORED[part][name]:
        assert stored_run["commit"] != "unknown"
        assert not stored_run["commit"].endswith("+")
