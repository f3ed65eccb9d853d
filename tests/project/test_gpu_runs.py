"""The three runs for a GPU: no step can spoil the others, what was measured comes back, and only
what fits is collected.

A dry run takes every step of all runs at toy size.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cifar_parts
import gpu
import gpu_steps
import pytest
import timing
import torch

import katlib
from katlib.book.results import FOLDER

RUN_NAMES = ("A", "B", "C")


# ---- steps that fail, hang or lack something


def pretend(monkeypatch, project: Path, steps: dict[str, gpu.Step]) -> None:
    """Makes this folder the project, in which steps may write results, as if there were a GPU."""
    old_result = project / "results/old.json"
    old_result.parent.mkdir()
    old_result.write_text("{}")
    os.utime(old_result, (1, 1))
    monkeypatch.setattr(gpu, "ROOT", project)
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(gpu, "RUNS", {"A": tuple(steps)})
    monkeypatch.setattr(gpu, "find_program", lambda name: None)
    monkeypatch.setattr(gpu, "git_commit", lambda: "0123456789ab")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def program(text: str, seconds: float = 30, **conditions) -> gpu.Step:
    return gpu.Step(seconds, ("-c", text), dry=(), **conditions)


MEASURES_AND_HANGS = """
import json, time
json.dump([1], open('results/measured.json', 'w'))
print('measured', flush=True)
time.sleep(60)
"""
PRINTS_ITS_PATH = """
import os
print('the path has the project:', os.environ['PYTHONPATH'].split(os.pathsep)[0])
"""
MIXED_STEPS = {
    "fails": program("raise SystemExit(3)"),
    "hangs": program(MEASURES_AND_HANGS, seconds=4),
    "checker": program("print('never')", programs=("compute-sanitizer",)),
    "works": program(PRINTS_ITS_PATH),
}


@pytest.fixture(scope="module")
def all_taken(tmp_path_factory):
    """What is left of a run in which one step fails, one hangs and one cannot be taken."""
    project = tmp_path_factory.mktemp("project")
    out = project / "out"
    printed = io.StringIO()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        pretend(monkeypatch, project, MIXED_STEPS)
        status = gpu.main(["A", "--out", str(out)])
    return SimpleNamespace(
        status=status,
        seconds=time.monotonic() - started,
        out=out,
        log=(out / "A.log").read_text(),
        table=[line.split(maxsplit=3) for line in printed.getvalue().splitlines()[-4:]],
        project=project,
    )


@pytest.mark.slow
def test_steps_go_on_past_what_fails_hangs_or_is_missing(all_taken):
    assert [(name, how) for name, _, _, how in all_taken.table] == [
        ("fails", "failed with 3"),
        ("hangs", "stopped after 4 s"),
        ("checker", "left out: there is no compute-sanitizer"),
        ("works", "passed"),
    ]
    assert all_taken.seconds < 30


@pytest.mark.slow
def test_a_step_that_failed_makes_the_whole_fail(all_taken):
    assert all_taken.status == 1


@pytest.mark.slow
def test_what_a_stopped_step_had_measured_is_kept_and_nothing_else(all_taken):
    with zipfile.ZipFile(all_taken.out / "A.zip") as archive:
        assert archive.namelist() == ["results/measured.json"]
        assert json.loads(archive.read("results/measured.json")) == [1]


@pytest.mark.slow
def test_a_run_leaves_few_files(all_taken):
    """They may have to be carried from another machine."""
    assert sorted(path.name for path in all_taken.out.iterdir()) == ["A.log", "A.zip"]


@pytest.mark.slow
def test_the_log_has_what_was_printed_and_how_steps_ended(all_taken):
    assert "measured\n" in all_taken.log
    assert "stopped after 4 s" in all_taken.log
    assert "there is no nvidia-smi" in all_taken.log


@pytest.mark.slow
def test_a_step_finds_the_project(all_taken):
    assert f"the path has the project: {all_taken.project}\n" in all_taken.log


def test_results_come_back_while_a_step_still_runs(tmp_path):
    """A run may be killed from outside at any moment."""
    keeper = gpu.Keeper("A", tmp_path / "out", tmp_path, copies_results=True)
    with keeper.log:
        (tmp_path / "row.json").write_text("[1]")
        keeper.keep()
    with zipfile.ZipFile(tmp_path / "out/A.zip") as archive:
        assert archive.read("results/row.json") == b"[1]"


def test_a_step_that_is_left_out_is_no_failure(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, MIXED_STEPS)
    assert gpu.main(["works", "checker", "--out", str(tmp_path / "out")]) == 0


def test_after_a_smoke_test_that_failed_nothing_else_is_taken(tmp_path, monkeypatch, capsys):
    steps = {
        "smoke": program("raise SystemExit(1)", is_condition=True),
        "kernel": program("print('never')"),
    }
    pretend(monkeypatch, tmp_path, steps)
    assert gpu.main(["A"]) == 1
    assert capsys.readouterr().out.endswith("not begun: smoke failed\n")


def test_no_step_begins_when_the_time_is_over(tmp_path, monkeypatch, capsys):
    steps = {name: program("import time; time.sleep(60)") for name in ("first", "second")}
    pretend(monkeypatch, tmp_path, steps)
    assert gpu.main(["--seconds", "1"]) == 1
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.endswith("stopped after 1 s")
    assert second.endswith("not begun: no time was left")


def test_clock_rates_are_logged_during_a_run(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, {"works": program("import time; time.sleep(0.5)")})
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "$1"\nexec sleep 60\n')
    smi.chmod(0o755)
    monkeypatch.setattr(gpu, "find_program", {"nvidia-smi": str(smi)}.get)
    started = time.monotonic()
    assert gpu.main(["A", "--out", str(tmp_path / "out")]) == 0
    assert "clocks.sm,clocks.mem,power.draw" in (tmp_path / "out/A-clocks.csv").read_text()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "arguments, has_gpu, message",
    [
        (["kernal"], False, "there is no kernal"),
        ([], False, "no CUDA device"),
        ([], True, "set KATLIB_COMMIT"),
    ],
)
def test_the_script_says_what_it_cannot_do(arguments, has_gpu, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(gpu, "git_commit", lambda: "unknown")
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


# ---- the plan


@pytest.mark.parametrize("name", gpu.STEPS)
def test_every_step_for_a_gpu_is_there_to_be_run(name):
    step = gpu.STEPS[name]
    files = [argument for argument in step.arguments if argument.endswith(".py")]
    assert len(files) == 1
    assert (gpu.ROOT / files[0]).exists()
    assert 0 < step.seconds <= gpu.RUN_SECONDS


def test_every_step_belongs_to_one_run():
    assert tuple(gpu.RUNS) == RUN_NAMES
    assert [name for names in gpu.RUNS.values() for name in names] == list(gpu.STEPS)


def test_a_run_is_over_within_nine_minutes():
    assert gpu.RUN_SECONDS <= 9 * 60


def test_a_checker_watches_our_kernels_and_sees_an_allocation_for_each_tensor():
    step = gpu.STEPS["memcheck"]
    assert gpu.environment_of(step)["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" not in gpu.environment_of(gpu.STEPS["tests"])
    assert "kns=rational" in step.command(is_dry=False)


def test_a_program_of_nvidia_is_found_outside_of_the_path(tmp_path, monkeypatch):
    folder = tmp_path / "cuda-13/bin"
    folder.mkdir(parents=True)
    (folder / "ncu").write_text("#!/bin/sh\n")
    (folder / "ncu").chmod(0o755)
    monkeypatch.setattr(gpu, "PROGRAM_FOLDERS", (f"{tmp_path}/cuda*/bin",))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.find_program("ncu") == str(folder / "ncu")
    assert gpu.find_program("compute-sanitizer") is None


def test_training_is_left_out_where_there_are_no_data(monkeypatch):
    monkeypatch.setattr(cifar_parts, "is_there", lambda: False)
    assert "CIFAR-10 is neither in the cache nor" in gpu.missing(gpu.STEPS["kat"], is_dry=False)


# ---- a dry run of everything


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The printed tables and the archives of a dry run of all three runs."""
    if not shutil.which("g++"):
        pytest.skip("the emulator needs g++")
    out = tmp_path_factory.mktemp("dry")
    stored = {path: path.stat().st_mtime for path in FOLDER.rglob("*.json")}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = gpu.main(["--dry-run", "--seconds", "7200", "--out", str(out)])
    names = {}
    for run in RUN_NAMES:
        with zipfile.ZipFile(out / f"{run}.zip") as archive:
            names[run] = archive.namelist()
    text = printed.getvalue()
    return SimpleNamespace(status=status, text=text, names=names, stored=stored)


@pytest.mark.slow
def test_every_step_runs_on_a_gpu_that_is_not_there(dry_run):
    assert dry_run.status == 0, dry_run.text[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("run, result", [("A", "kernel"), ("B", "scale"), ("C", "cifar-compact")])
def test_a_dry_run_brings_its_results_back(dry_run, run, result):
    assert any(name.startswith(f"results/{result}") for name in dry_run.names[run])


@pytest.mark.slow
def test_a_dry_run_leaves_the_results_alone(dry_run):
    assert dry_run.stored == {path: path.stat().st_mtime for path in FOLDER.rglob("*.json")}


# ---- single steps


def test_the_smoke_test_fails_if_a_kernel_is_wrong(monkeypatch):
    right = katlib.rational
    monkeypatch.setattr(katlib, "rational", lambda x, a, b: 1.01 * right(x, a, b))
    monkeypatch.setattr(gpu_steps, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(katlib.cuda, "available", lambda: True)
    with pytest.raises(SystemExit, match=r"torch\.float32 is wrong"):
        gpu_steps.smoke(SimpleNamespace())


def test_the_smoke_test_fails_if_the_reference_would_compute(monkeypatch):
    """Without the kernels `katlib.rational` is right as well, and slow."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(katlib.cuda, "available", lambda: False)
    with pytest.raises(SystemExit, match="cannot be compiled or loaded"):
        gpu_steps.smoke(SimpleNamespace())


PROFILE = """==PROF== Connected to process 12
launched torch.bfloat16
==PROF== Disconnected from process 12
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","12","rational_forward","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","91.5"
"0","12","rational_forward","gpu__time_duration.sum","ns","26,112"
"1","12","rational_backward","sm__inst_issued.avg.pct_of_peak_sustained_active","%","78.25"
"1","12","rational_backward","smsp__inst_executed.sum","inst","n/a"
"""


def test_the_profilers_table_is_read():
    forward, backward = gpu_steps.profiled_rows(PROFILE)
    assert (forward["kernel"], forward["dtype"]) == ("rational_forward", "bfloat16")
    assert forward["metrics"] == {"dram_percent": 91.5, "ns": 26112.0}
    assert backward["metrics"] == {"issue_percent": 78.25}


def test_a_launch_that_was_not_expected_has_no_dtype():
    rows = gpu_steps.profiled_rows(PROFILE.replace("rational_forward", "rational_other"))
    assert [row["dtype"] for row in rows] == ["unknown", "bfloat16"]


def test_without_jupyter_a_chapter_runs_and_says_what_is_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    cell = {"cell_type": "code", "source": ["open('katlib-chapter09-x.json', 'w').close()"]}
    text = json.dumps({"cells": [cell]})
    (tmp_path / "notebooks/09_toy.ipynb").write_text(text)
    monkeypatch.setattr(gpu_steps, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_steps, "find_spec", lambda name: None)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    gpu_steps.chapters(SimpleNamespace(numbers=["09"], dry_run=False))
    assert "nbclient, nbformat, ipykernel, anywidget cannot be imported" in capsys.readouterr().out
    assert (tmp_path / "katlib-chapter09-x.json").exists()


# ---- collecting

MEASURED = {
    "chapter": 9,
    "device_name": "Tesla T4",
    "compute_capability": "7.5",
    "torch": "2.9",
    "cuda": "12.8",
    "commit": "unknown",
    "date": "2026-01-01",
    "measured": {"GELU, ms": {"values": 9, "p20": 1.0, "p50": 1.1, "p80": 1.2}},
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit in the place of this one, and that commit."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")

    def git(*arguments):
        command = ["git", *identity, *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    return SimpleNamespace(folder=tmp_path, commit=git("rev-parse", "--short=12", "HEAD"))


def benchmark(commit: str, /, **changes) -> dict:
    return {
        "what": "a thing",
        "device_name": "NVIDIA H100",
        "torch": "2.9",
        "commit": commit,
        "date": "2026-01-01",
        "rounds": 2,
        "rows": [{"ms": 1.0}],
    } | changes


def collected(repository, record: object, name: str = "results/thing-h100.json") -> int:
    """The exit status of collecting one file."""
    out = repository.folder / "out"
    out.mkdir()
    with zipfile.ZipFile(out / "A.zip", "w") as archive:
        archive.writestr(name, record if isinstance(record, str) else json.dumps(record))
    return gpu.main(["--collect", str(out)])


def test_a_result_of_this_repository_is_put_into_results(repository):
    record = benchmark(repository.commit)
    assert collected(repository, record) == 0
    assert json.loads((repository.folder / "results/thing-h100.json").read_text()) == record


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"commit": "0123456789ab"}, "is none of this repository"),
        ({"commit": "unknown"}, "is none of this repository"),
        ({"commit": 7}, "it lacks commit"),
        ({"device_name": None}, "it lacks device_name"),
        ({"rows": {}}, "it lacks rows"),
        ({"rows": []}, "it has no rows"),
        ({"test_accuracy": 0.9}, "it lacks preset, mlp, epochs"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(repository, capsys, changes, message):
    assert collected(repository, benchmark(repository.commit, **changes)) == 1
    assert message in capsys.readouterr().out
    assert not (repository.folder / "results").exists()


def test_a_result_of_changed_files_is_refused(repository, capsys):
    assert collected(repository, benchmark(repository.commit + "+")) == 1
    assert "is none of this repository" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_file_that_is_no_record_is_refused(repository, capsys, text):
    assert collected(repository, text) == 1
    assert "it is no JSON object" in capsys.readouterr().out


def test_what_a_reader_measured_has_a_folder_of_its_own(repository):
    name = "results/katlib-chapter09-tesla-t4.json"
    assert collected(repository, MEASURED, name) == 0
    path = repository.folder / "results/readers/katlib-chapter09-tesla-t4.json"
    assert json.loads(path.read_text()) == MEASURED


def test_what_a_reader_measured_is_checked(repository, capsys):
    assert collected(repository, MEASURED | {"host": "mine"}) == 1
    assert "the keys must be chapter" in capsys.readouterr().out


def test_a_notebook_is_not_put_over_the_books(repository):
    assert collected(repository, {"cells": []}, "notebooks/09_roofline.ipynb") == 0
    assert (repository.folder / "build/collected/09_roofline.ipynb").exists()


def test_a_name_in_an_archive_leads_nowhere_else(repository):
    name = "results/../../outside.json"
    assert collected(repository, benchmark(repository.commit), name) == 0
    assert (repository.folder / "results/outside.json").exists()


# ---- CIFAR-10 in parts


def test_a_sheet_of_images_loses_nothing():
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(cifar_parts.decode(cifar_parts.encode(images, side=3), side=3), images)


def test_an_absent_part_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KATLIB_DATA", str(tmp_path / "cache"))
    for name in cifar_parts.NAMES[:2]:
        (tmp_path / name).write_bytes(b"")
    assert not cifar_parts.is_there(tmp_path)
    with pytest.raises(SystemExit, match=f"lacks {cifar_parts.NAMES[2]}"):
        cifar_parts.main(["read", str(tmp_path)])


@pytest.mark.slow
def test_three_small_parts_make_the_data_again(tmp_path, monkeypatch):
    """Of six images, one a sheet; `load_cifar10` would ask for 60,000, so it is left out."""
    for name, value in (("SIDE", 1), ("SHEET", 1), ("TRAINING", 5)):
        monkeypatch.setattr(cifar_parts, name, value)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6)
    data = SimpleNamespace(
        train_images=images[:5],
        train_labels=labels[:5],
        test_images=images[5:],
        test_labels=labels[5:],
        sha256="of six",
    )
    monkeypatch.setattr(cifar_parts, "load_cifar10", lambda **options: data)
    monkeypatch.setenv("KATLIB_DATA", str(tmp_path / "cache"))
    cifar_parts.main(["write", str(tmp_path)])
    cifar_parts.main(["read", str(tmp_path)])
    made = cifar_parts.load_file(cifar_parts.cache())
    assert torch.equal(made["train_images"], data.train_images)
    assert torch.equal(made["test_labels"], data.test_labels)
