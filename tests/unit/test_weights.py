"""The trained models that come with katlib: small, and as accurate as their records say."""

import json

import pytest
import torch

import katlib
from katlib.book.results import FOLDER
from katlib.pretrained import OURS
from katlib.train import evaluate

# each model with its record
RECORDS = {
    "kat-cifar10": "cifar-nano-grkan-seed0-15epochs",
    "kat-cifar10-compact": "cifar-compact-grkan-seed0",
}


@pytest.fixture(scope="module", params=RECORDS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return katlib.load_pretrained(name)


@pytest.fixture(scope="module")
def record(name):
    """How the model was trained, and what its accuracy was."""
    return json.loads((FOLDER / f"{RECORDS[name]}.json").read_text())


def test_every_model_that_comes_with_katlib_is_tested():
    assert set(OURS) == set(RECORDS)


def test_it_is_small(name):
    assert OURS[name].stat().st_size < 2e6


def test_it_says_what_it_is_for(model):
    cfg = model.pretrained_cfg
    assert cfg["classes"][3] == "cat"
    assert cfg["input_size"] == (3, 32, 32)
    assert cfg["num_classes"] == 10


def test_it_says_how_it_was_trained(model, record):
    training = model.pretrained_cfg["training"]
    assert training["config"] == record["config"]
    assert training["data_sha256"] == record["data_sha256"]


def test_it_has_the_parameters_of_its_record(model, record):
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]


@pytest.mark.slow
def test_its_accuracy_on_all_test_images_is_that_of_its_record(model, record):
    """The record is of the weights before they were rounded to float16."""
    data = katlib.load_cifar10(progress=False)
    _, accuracy = evaluate(model, data.test_images, data.test_labels)
    assert accuracy == pytest.approx(record["test_accuracy"], abs=2e-3)


def test_the_compact_one_recognises_nine_of_ten_images():
    record = json.loads((FOLDER / f"{RECORDS['kat-cifar10-compact']}.json").read_text())
    assert record["test_accuracy"] == record["epochs"][-1]["test_accuracy"] > 0.9


def test_its_functions_are_those_that_were_recorded_last():
    model = katlib.load_pretrained("kat-cifar10")
    functions = json.loads((FOLDER / "inside-kat-cifar10.json").read_text())["functions"]
    for name, recorded in functions.items():
        function = model.get_submodule(name)
        numerator = torch.tensor(recorded["numerator"][-1])
        denominator = torch.tensor(recorded["denominator"][-1])
        assert torch.allclose(function.weight_numerator, numerator, rtol=1e-6)
        assert torch.allclose(function.weight_denominator, denominator, rtol=1e-6)
