"""The benchmarks' own machinery: who takes part in which round, what is said of where a figure comes from, and that no step for a GPU can spoil the others."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from katlib import provenance as results

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import timing


def test_a_slow_way_leaves_after_five_rounds_and_its_ratio_is_of_rounds_that_both_took():
    order = []
    ways = {
        "fast": lambda: order.append("fast"),
        "slow": lambda: (order.append("slow"), time.sleep(0.02)),
    }
    times = timing.turns(ways, torch.device("cpu"), rounds=9, warmup=2, patience=0.05)
    assert (
        (len(times["fast"]), len(times["slow"])) == (9, 5)
        and order[:14] == ["fast", "slow"] * 7
        and order[14:] == ["fast"] * 4
    )
    assert timing.ratio({"a": [2.0, 4.0, 6.0], "b": [1.0, 1.0, 1.0, 100.0]}, "a", "b") == 4
    everyone = timing.turns(ways, torch.device("cpu"), rounds=6, warmup=0)
    assert [len(t) for t in everyone.values()] == [6, 6]


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_a_result_names_the_commit_and_whether_the_program_was_changed(tmp_path):
    """A result that was written a moment ago is no change of the program; and a tree without git can be told its commit."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(**environment):
        program = "from katlib.provenance import git_commit; print(git_commit())"
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    shutil.copytree(
        ROOT / "katlib", tmp_path / "katlib", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "results").mkdir()
    result = tmp_path / "results/kernel-cpu.json"
    result.write_text("1")
    assert commit() == "unknown" and commit(KATLIB_COMMIT="0123456789ab") == "0123456789ab"
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "all")
    head = git("rev-parse", "--short=12", "HEAD")
    assert commit() == commit(KATLIB_COMMIT="0123456789ab") == head
    result.write_text("2")
    assert commit() == head
    with (tmp_path / "katlib/cost.py").open("a") as source:
        source.write("# changed")
    assert commit() == head + "+"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which steps may write results, as if there were a GPU."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results/old.json").write_text("{}")
    os.utime(tmp_path / "results/old.json", (1, 1))
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return tmp_path


def test_steps_for_a_gpu_go_on_past_what_fails_hangs_or_is_missing(project, monkeypatch, capsys):
    measured = "import json, time; json.dump([1], open('results/measured.json', 'w')); print('measured', flush=True); time.sleep(60)"
    monkeypatch.setattr(
        gpu,
        "STEPS",
        {
            "fails": (30, ["-c", "raise SystemExit(3)"], []),
            "hangs": (4, ["-c", measured], []),
            "checker": (30, ["-c", "print('never')"], ["compute-sanitizer"]),
            "works": (
                30,
                [
                    "-c",
                    "import os; print('the path has the project:', os.environ['PYTHONPATH'].split(os.pathsep)[0])",
                ],
                [],
            ),
        },
    )
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    out = project / "out"
    started = time.monotonic()
    assert gpu.main(["--out", str(out)]) == 1 and time.monotonic() - started < 30
    table = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [(name, how) for name, _, _, how in table] == [
        ("fails", "failed with 3"),
        ("hangs", "stopped after 4 s"),
        ("checker", "left out: there is no compute-sanitizer"),
        ("works", "passed"),
    ]
    assert json.loads((out / "measured.json").read_text()) == [1] and sorted(
        path.name for path in out.iterdir()
    ) == ["gpu.log", "measured.json"]
    log = (out / "gpu.log").read_text()
    assert (
        "measured\n" in log
        and f"the path has the project: {project}\n" in log
        and "stopped after 4 s" in log
    )
    assert gpu.main(["works", "checker", "--out", str(out)]) == 0


def test_no_step_begins_when_the_time_is_over(project, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu,
        "STEPS",
        {name: (30, ["-c", "import time; time.sleep(60)"], []) for name in ("first", "second")},
    )
    assert gpu.main(["--seconds", "1"]) == 1
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.endswith("stopped after 1 s") and second.endswith("not begun: no time was left")


def test_the_script_says_what_it_cannot_do(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in ((["kernal"], "there is no step kernal"), ([], "no CUDA device")):
        with pytest.raises(SystemExit):
            gpu.main(arguments)
        assert message in capsys.readouterr().err


def test_every_step_for_a_gpu_is_there_to_be_run():
    for seconds, arguments, _ in gpu.STEPS.values():
        files = [argument for argument in arguments if argument.endswith(".py")]
        assert len(files) == 1 and (gpu.ROOT / files[0]).exists() and 0 < seconds <= 600
    assert results.FOLDER == gpu.ROOT / "results"
