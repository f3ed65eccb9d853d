"""Where a number was measured: the device's name, and the commit."""

import subprocess
from pathlib import Path

import pytest
import torch

from katlib import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, in the place of this one."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init", "-q")
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/run.json"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path, git("rev-parse", "--short=12", "HEAD").stdout.strip()


def test_the_commit_is_twelve_digits(repository):
    assert provenance.git_commit() == repository[1]


def test_a_change_is_marked(repository):
    (repository[0] / "code.py").write_text("2")
    assert provenance.git_commit() == repository[1] + "+"


def test_a_change_in_the_results_is_none(repository):
    (repository[0] / "results" / "run.json").write_text("2")
    assert provenance.git_commit() == repository[1]


@pytest.mark.parametrize("commit", ["abc", None])
def test_without_a_repository_the_environment_says_the_commit(tmp_path, monkeypatch, commit):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.delenv("KATLIB_COMMIT", raising=False)
    if commit:
        monkeypatch.setenv("KATLIB_COMMIT", commit)
    assert provenance.git_commit() == (commit or "unknown")


def test_without_git_the_commit_is_unknown(repository, monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert provenance.git_commit() == "unknown"


@pytest.mark.parametrize("count, words", [(1, "1 thread"), (2, "2 threads"), (16, "16 threads")])
def test_a_processor_is_named_with_its_threads(monkeypatch, count, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert provenance.device_name(torch.device("cpu")).endswith(f", {words}")


def test_a_processor_has_a_name_where_linux_does_not_tell_it(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    name = provenance.device_name(torch.device("cpu"))
    assert len(name.split(",")[0]) > 2


def test_a_gpu_is_named_by_the_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert provenance.device_name(torch.device("cuda")) == "NVIDIA H100"
