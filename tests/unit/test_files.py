"""Files are whole or absent, paths are what the user meant, and a lock has one holder."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from katlib import files
from katlib.files import (
    cache_folder,
    lock,
    user_path,
    warn_not_kept,
    write_json,
    write_text,
    write_whole,
)

ROOT = Path(__file__).parents[2]


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with write_whole(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_failure_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), write_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def by_safetensors(path):
    save_file({"a": torch.zeros(1)}, path)


@pytest.mark.parametrize("write", [Path.touch, by_safetensors])
def test_others_may_read_a_file_as_the_umask_says(tmp_path, write):
    """As in a class that shares a folder."""
    before = os.umask(0o027)
    try:
        with write_whole(tmp_path / "a") as temporary:
            write(temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_writers_of_one_file_at_once_each_write_a_whole_one(tmp_path):
    path, texts = tmp_path / "a.txt", [str(i) * 10_000 for i in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1, 2.5]}
    assert text.count("\n") == 1


def test_text_is_utf_8_in_any_locale(tmp_path):
    write_text(tmp_path / "a.txt", "2 × 3 − 1")
    assert (tmp_path / "a.txt").read_bytes().decode() == "2 × 3 − 1"


# ---- paths that a user gives


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and a working folder of their own, and an environment that names no other folder."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.fixture
def no_home(home, monkeypatch):
    """As in a container that runs under a number that no user has."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])


def test_a_tilde_is_the_users_home(home):
    assert user_path("~/runs") == home / "runs"


def test_a_relative_path_is_meant_from_where_it_was_given(home, monkeypatch):
    path = user_path("runs")
    monkeypatch.chdir("/")
    assert path == home.parent / "work" / "runs"


def test_a_file_is_written_where_the_user_meant_it(home):
    write_text("~/a.txt", "whole")
    assert (home / "a.txt").read_text(encoding="utf-8") == "whole"


@pytest.mark.parametrize(
    "chosen, environment, expected",
    [
        ("/data", {"XDG_CACHE_HOME": "/cache"}, "/data"),
        ("~/data", {}, "HOME/data"),
        ("data", {}, "HOME/../work/data"),
        (None, {"XDG_CACHE_HOME": "/cache", "LOCALAPPDATA": "/local"}, "/cache/katlib"),
        ("", {"XDG_CACHE_HOME": "~/cache"}, "HOME/cache/katlib"),
        (None, {"XDG_CACHE_HOME": "cache"}, "HOME/.cache/katlib"),
        (None, {"XDG_CACHE_HOME": "cache", "LOCALAPPDATA": "/local"}, "/local/katlib"),
        (None, {"XDG_CACHE_HOME": ""}, "HOME/.cache/katlib"),
    ],
)
def test_where_the_cache_is(home, monkeypatch, chosen, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder(chosen) == Path(os.path.normpath(expected.replace("HOME", str(home))))


@pytest.mark.usefixtures("no_home")
@pytest.mark.parametrize("chosen", [None, "~/data"])
def test_a_user_without_a_home_has_no_cache(chosen):
    with pytest.raises(RuntimeError, match="home"):
        cache_folder(chosen)


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home_may_choose_a_cache():
    assert cache_folder("/data") == Path("/data")


def test_a_cache_that_cannot_be_used_is_told_once_with_its_reason():
    files._warn_once.cache_clear()
    error = PermissionError(13, "Permission denied", "/data/one file of many")
    with pytest.warns(UserWarning, match=r"keep it in /data \(Permission denied\): do so") as told:
        for _ in range(2):
            warn_not_kept("it", Path("/data"), error, "do so")
    assert len(told) == 1


# ---- an ASCII locale

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}

TRAIN = """
import sys, torch
import katlib.train
from katlib.train.data import CIFAR10

# of their own, so that the real data need not be here
images, labels = torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.arange(64) % 10
data = CIFAR10(images, labels, images, labels, sha256="0" * 64)
katlib.train.train("cifar-pico", epochs=1, data=data, out=sys.argv[1])
"""


def run_in_ascii(*arguments, folder=ROOT):
    """Runs a program, and fails if ours opens a file, or a pipe, without naming the encoding."""
    command = [sys.executable, "-X", "warn_default_encoding", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=os.environ | ASCII, capture_output=True)
    errors = done.stderr.decode()
    assert done.returncode == 0, errors
    assert not re.findall(r"/(?:katlib|_ext)/\S*: EncodingWarning.*", errors)
    return done.stdout.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import katlib; print(katlib.GroupRational(8))"],
        ["-m", "katlib.train", "--help"],
    ],
    ids=["import", "help"],
)
def test_the_package_speaks_in_an_ascii_locale(arguments):
    assert run_in_ascii(*arguments)


@pytest.mark.slow
def test_training_in_an_ascii_locale(tmp_path):
    out = tmp_path / "naïve"
    run_in_ascii("-c", TRAIN, out)
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert len(record["epochs"]) == 1


NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# 2 × 3 − 1"]},
        {
            "cell_type": "code",
            "id": "b",
            "execution_count": None,
            "metadata": {},
            "outputs": [],
            "source": ["print('2 × 3 − 1')"],
        },
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.fixture
def small_book(tmp_path):
    """The program that works on notebooks, with one small notebook whose text is not ASCII."""
    program = tmp_path / "book" / "_ext" / "notebooks.py"
    program.parent.mkdir(parents=True)
    shutil.copy(ROOT / "book" / "_ext" / "notebooks.py", program)
    for name in ("_config.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    write_json(tmp_path / "notebooks" / "01_a.ipynb", NOTEBOOK, ensure_ascii=False)
    origin = ["remote", "add", "origin", "https://github.com/reader/book"]
    for arguments in (["init", "--quiet"], origin):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["execute", "colab", "student"])
def test_the_notebooks_in_an_ascii_locale(small_book, command):
    run_in_ascii("book/_ext/notebooks.py", command, folder=small_book)
    folder = "build/student" if command == "student" else "notebooks"
    text = (small_book / folder / "01_a.ipynb").read_text(encoding="utf-8")
    assert "# 2 × 3 − 1" in text


# ---- locks


def test_a_lock_has_one_holder_among_threads(tmp_path):
    order = []

    def hold(name):
        with lock(tmp_path / "a"):
            order.append(name)
            time.sleep(0.02)
            order.append(name)

    threads = [threading.Thread(target=hold, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2]


@pytest.mark.slow
def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    program = (
        "import sys, time; from katlib.files import lock\n"
        f"lock({str(tmp_path / 'a')!r}).acquire(); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
    with lock(tmp_path / "a").acquire(timeout=5):
        pass
