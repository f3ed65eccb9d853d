"""The trained model that comes with katlib: small enough, loads, and is as accurate as its record says."""

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


def test_it_is_small_and_says_what_it_is(model):
    assert OURS["kat-cifar10"].stat().st_size < 6e6
    cfg, record = (
        model.pretrained_cfg,
        json.loads((FOLDER / "cifar-nano-grkan-seed0-15epochs.json").read_text()),
    )
    assert (
        cfg["classes"][3] == "cat" and cfg["input_size"] == (3, 32, 32) and cfg["num_classes"] == 10
    )
    assert (
        cfg["training"]["config"] == record["config"]
        and cfg["training"]["data_sha256"] == record["data_sha256"]
    )
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]


def test_its_accuracy_on_1000_test_images(model):
    """The record's accuracy is over 10,000 images; 1,000 of them scatter by sqrt(p (1 - p) / 1000)."""
    data = katlib.load_cifar10(progress=False)
    images, labels = data.test_images[:1000], data.test_labels[:1000]
    with torch.no_grad():
        logits = torch.cat([model(normalize(part)) for part in images.split(250)])
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    p = json.loads((FOLDER / "cifar-nano-grkan-seed0-15epochs.json").read_text())["test_accuracy"]
    assert p > 0.7 and abs(accuracy - p) < 3 * (p * (1 - p) / 1000) ** 0.5


def test_its_functions_are_those_that_were_recorded_last(model):
    record = json.loads((FOLDER / "inside-kat-cifar10.json").read_text())
    for name, function in record["functions"].items():
        module = model.get_submodule(name)
        assert torch.allclose(
            module.weight_numerator, torch.tensor(function["numerator"][-1]), rtol=1e-6
        )
        assert torch.allclose(
            module.weight_denominator, torch.tensor(function["denominator"][-1]), rtol=1e-6
        )
