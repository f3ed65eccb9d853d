"""The trained model that comes with katlib: small, and as accurate as its record says."""

import json

import pytest
import torch

import katlib
from katlib.book.results import FOLDER
from katlib.pretrained import OURS
from katlib.train.data import normalize


@pytest.fixture(scope="module")
def model():
    return katlib.load_pretrained("kat-cifar10")


@pytest.fixture(scope="module")
def record():
    """How the model was trained, and what its accuracy was."""
    return json.loads((FOLDER / "cifar-nano-grkan-seed0-15epochs.json").read_text())


def test_it_is_small():
    assert OURS["kat-cifar10"].stat().st_size < 6e6


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
def test_its_accuracy_on_1000_test_images_is_that_of_its_record(model, record):
    """The record is of 10,000 images; 1,000 of them scatter by sqrt(p (1 - p) / 1000)."""
    data = katlib.load_cifar10(progress=False)
    images, labels = data.test_images[:1000], data.test_labels[:1000]
    with torch.no_grad():
        logits = torch.cat([model(normalize(part)) for part in images.split(250)])
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    p = record["test_accuracy"]
    assert p > 0.7
    assert abs(accuracy - p) < 3 * (p * (1 - p) / 1000) ** 0.5


def test_its_functions_are_those_that_were_recorded_last(model):
    functions = json.loads((FOLDER / "inside-kat-cifar10.json").read_text())["functions"]
    for name, recorded in functions.items():
        function = model.get_submodule(name)
        numerator = torch.tensor(recorded["numerator"][-1])
        denominator = torch.tensor(recorded["denominator"][-1])
        assert torch.allclose(function.weight_numerator, numerator, rtol=1e-6)
        assert torch.allclose(function.weight_denominator, denominator, rtol=1e-6)
