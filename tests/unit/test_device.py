"""`say_device`: what a notebook prints about the machine that it runs on."""

import pytest
import torch

from katlib.book.device import say_device


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
