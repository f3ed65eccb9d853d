"""What a notebook prints about its machine, and the file of what a reader's GPU measured."""

import json

import pytest
import torch

from katlib.book.device import (
    MeasurementError,
    check_measurements,
    save_measurements,
    say_device,
)


@pytest.mark.parametrize(
    "threads, message",
    [
        (1, "No GPU, 1 CPU thread: 2,500 images. With a GPU: all images.\n"),
        (2, "No GPU, 2 CPU threads: 2,500 images. With a GPU: all images.\n"),
    ],
)
def test_without_a_gpu_the_threads_are_said_in_one_line(monkeypatch, capsys, threads, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    say_device("all images", "2,500 images")
    assert capsys.readouterr().out == message


def test_a_gpu_is_said_by_its_name_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    say_device("all images", "2,500 images")
    assert capsys.readouterr().out == "NVIDIA H100 80GB HBM3: all images.\n"


# ---- what a reader's GPU measured


@pytest.fixture
def t4(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.version, "cuda", "12.8")


@pytest.fixture
def record(t4, tmp_path):
    """What a file of measurements holds."""
    path = save_measurements(9, {"GELU, ms": [1.0, 2.0, 3.0, 4.0, 5.0, 9.0]}, tmp_path)
    return json.loads(path.read_text())


def test_a_file_of_measurements_is_named_after_chapter_and_gpu(t4, tmp_path, capsys):
    path = save_measurements(9, {"GELU, ms": [1.0, 2.0]}, tmp_path)
    assert path == tmp_path / "katlib-chapter09-tesla-t4.json"
    assert capsys.readouterr().out == f"Written to {path}.\n"


def test_a_file_of_measurements_says_on_what_and_how_much(record):
    assert (record["device_name"], record["compute_capability"]) == ("Tesla T4", "7.5")
    assert record["measured"] == {"GELU, ms": {"values": 6, "p20": 2.0, "p50": 3.5, "p80": 5.0}}


@pytest.mark.parametrize(
    "has_gpu, measured, message",
    [
        (False, {"GELU, ms": [1.0, 2.0]}, "There is no GPU here"),
        (True, {}, "Nothing was measured here"),
    ],
)
def test_without_anything_to_send_no_file_is_written(
    t4, tmp_path, capsys, monkeypatch, has_gpu, measured, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert save_measurements(9, measured, tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("GELU", [1.0, 2.0], "must end with a comma"),
        ("GELU, hours", [1.0, 2.0], "must end with a comma"),
        ("GELU, ms", [1.0], "two are needed"),
        ("GELU, ms", [1.0, float("nan")], "finite"),
        ("GELU, ms", [-2.0, -1.0], "not negative"),
    ],
)
def test_what_cannot_be_right_is_not_written(t4, tmp_path, name, values, message):
    with pytest.raises(MeasurementError, match=message):
        save_measurements(9, {name: values}, tmp_path)
    assert not list(tmp_path.iterdir())


WRONG_RECORDS = {
    "no object": lambda r: [r],
    "another key": lambda r: r | {"host": "my machine"},
    "a missing key": lambda r: {key: value for key, value in r.items() if key != "torch"},
    "a chapter that is text": lambda r: r | {"chapter": "9"},
    "a name of a thousand characters": lambda r: r | {"device_name": 1000 * "x"},
    "nothing measured": lambda r: r | {"measured": {}},
    "a number without a spread": lambda r: r | {"measured": {"GELU, ms": 1.0}},
    "text for a number": lambda r: r | {"measured": {"GELU, ms": dict.fromkeys(QUANTILES, "1")}},
    "a wrong order": lambda r: (
        r | {"measured": {"GELU, ms": r["measured"]["GELU, ms"] | {"p20": 9}}}
    ),
}
QUANTILES = ("values", "p20", "p50", "p80")


@pytest.mark.parametrize("wrong", WRONG_RECORDS)
def test_a_file_that_was_sent_in_is_checked(record, wrong):
    check_measurements(record)
    with pytest.raises(MeasurementError):
        check_measurements(WRONG_RECORDS[wrong](record))
