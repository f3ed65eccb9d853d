"""The benchmarks' own machinery, and the smallest run of what they measure.

Tested are: which way takes part in which round, what a result says about where it comes from, and
that no step for a GPU can spoil the others.
"""

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu
import inference
import kernel
import model
import publish
import pytest
import scale
import study
import timing
import torch

from katlib.book.results import FOLDER

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


# ---- timing


@pytest.fixture
def turns_taken():
    """The names of the ways in the order in which they ran."""
    return []


@pytest.fixture
def ways(turns_taken):
    def fast():
        turns_taken.append("fast")

    def slow():
        turns_taken.append("slow")
        time.sleep(0.02)

    return {"fast": fast, "slow": slow}


def test_a_slow_way_leaves_after_five_rounds(ways):
    times = timing.turns(ways, CPU, rounds=9, warmup=2, patience=0.05)
    assert {name: len(t) for name, t in times.items()} == {"fast": 9, "slow": 5}


def test_ways_take_turns_in_each_round(ways, turns_taken):
    timing.turns(ways, CPU, rounds=9, warmup=2, patience=0.05)
    assert turns_taken[:14] == ["fast", "slow"] * 7
    assert turns_taken[14:] == ["fast"] * 4


def test_without_a_limit_of_patience_every_way_takes_part_in_every_round(ways):
    times = timing.turns(ways, CPU, rounds=6, warmup=0)
    assert [len(t) for t in times.values()] == [6, 6]


def test_times_are_in_milliseconds(ways):
    times = timing.turns(ways, CPU, rounds=2, warmup=0)
    assert all(20 <= milliseconds < 1000 for milliseconds in times["slow"])


def test_a_ratio_is_of_the_rounds_in_which_both_took_part():
    times = {"a": [2.0, 4.0, 6.0], "b": [1.0, 1.0, 1.0, 100.0]}
    assert timing.ratio(times, "a", "b") == 4


def test_quantiles_are_those_of_their_names():
    quantiles = timing.quantiles([float(i) for i in range(1, 10)])
    assert quantiles == {"p20": 2.0, "p50": 5.0, "p80": 8.0}


@pytest.mark.parametrize(
    "device_name, short",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Some Radeon", "radeon"),
    ],
)
def test_a_gpu_has_a_short_name_for_a_file(device_name, short, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device_name)
    assert timing.slug(torch.device("cuda")) == short


def test_a_processor_is_called_cpu():
    assert timing.slug(CPU) == "cpu"


def test_a_stored_result_says_where_and_when_it_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    timing.store("thing-cpu", "a thing", CPU, 7, [{"ms": 1.0}])
    record = json.loads((tmp_path / "thing-cpu.json").read_text())
    assert list(record) == [
        "what",
        "device_name",
        "torch",
        "commit",
        "date",
        "rounds",
        "rows",
    ]
    assert (record["what"], record["rounds"], record["rows"]) == ("a thing", 7, [{"ms": 1.0}])
    assert capsys.readouterr().out == "written to results/thing-cpu.json\n"


# ---- the commit that a result names


def git(folder, *arguments) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_named_in(folder, **environment) -> str:
    """What the copy of katlib in this folder says of its commit."""
    program = "from katlib.provenance import git_commit; print(git_commit())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def copy_of_katlib(tmp_path):
    """The package and one result, in a folder without git."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "katlib", tmp_path / "katlib", ignore=ignored)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/kernel-cpu.json").write_text("1")
    return tmp_path


@pytest.fixture
def repository(copy_of_katlib):
    """The same with everything committed."""
    if not shutil.which("git"):
        pytest.skip("there is no git")
    git(copy_of_katlib, "init", "--quiet")
    git(copy_of_katlib, "add", ".")
    git(copy_of_katlib, "commit", "--quiet", "-m", "all")
    return copy_of_katlib


def head_of(repository) -> str:
    return git(repository, "rev-parse", "--short=12", "HEAD")


@pytest.mark.slow
def test_without_git_the_commit_is_unknown(copy_of_katlib):
    assert commit_named_in(copy_of_katlib) == "unknown"


@pytest.mark.slow
def test_a_tree_without_git_can_be_told_its_commit(copy_of_katlib):
    told = commit_named_in(copy_of_katlib, KATLIB_COMMIT="0123456789ab")
    assert told == "0123456789ab"


@pytest.mark.slow
def test_a_result_names_the_commit(repository):
    assert commit_named_in(repository) == head_of(repository)


@pytest.mark.slow
def test_git_knows_better_than_the_environment(repository):
    assert commit_named_in(repository, KATLIB_COMMIT="0123456789ab") == head_of(repository)


@pytest.mark.slow
def test_a_result_that_was_just_written_is_no_change_of_the_program(repository):
    (repository / "results/kernel-cpu.json").write_text("2")
    assert commit_named_in(repository) == head_of(repository)


@pytest.mark.slow
def test_a_changed_program_is_marked(repository):
    with (repository / "katlib/rational.py").open("a") as source:
        source.write("# changed")
    assert commit_named_in(repository) == head_of(repository) + "+"


def test_results_lie_where_the_book_reads_them():
    assert FOLDER == gpu.ROOT / "results"


def test_benchmarks_write_where_the_book_reads():
    assert timing.RESULTS == FOLDER


# ---- the steps for a GPU


def pretend(monkeypatch, project: Path, steps: dict[str, gpu.Step]) -> None:
    """Makes this folder the project, in which steps may write results, as if there were a GPU."""
    old_result = project / "results/old.json"
    old_result.parent.mkdir()
    old_result.write_text("{}")
    os.utime(old_result, (1, 1))
    monkeypatch.setattr(gpu, "ROOT", project)
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def program(text: str, seconds: float = 30, checked_by: tuple[str, ...] = ()) -> gpu.Step:
    return gpu.Step(seconds, ("-c", text), checked_by)


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
    "checker": program("print('never')", checked_by=("compute-sanitizer",)),
    "works": program(PRINTS_ITS_PATH),
}


@pytest.fixture(scope="module")
def all_taken(tmp_path_factory):
    """What is left of taking all steps, of which one fails, one hangs and one cannot be taken."""
    project = tmp_path_factory.mktemp("project")
    out = project / "out"
    printed = io.StringIO()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        pretend(monkeypatch, project, MIXED_STEPS)
        status = gpu.main(["--out", str(out)])
    return SimpleNamespace(
        status=status,
        seconds=time.monotonic() - started,
        out=out,
        log=(out / "gpu.log").read_text(),
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
def test_what_a_stopped_step_had_measured_is_kept(all_taken):
    assert json.loads((all_taken.out / "measured.json").read_text()) == [1]


@pytest.mark.slow
def test_only_the_log_and_new_results_are_copied(all_taken):
    names = sorted(path.name for path in all_taken.out.iterdir())
    assert names == ["gpu.log", "measured.json"]


@pytest.mark.slow
def test_the_log_has_what_was_printed_and_how_steps_ended(all_taken):
    assert "measured\n" in all_taken.log
    assert "stopped after 4 s" in all_taken.log


@pytest.mark.slow
def test_a_step_finds_the_project(all_taken):
    assert f"the path has the project: {all_taken.project}\n" in all_taken.log


def test_a_step_that_is_left_out_is_no_failure(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, MIXED_STEPS)
    assert gpu.main(["works", "checker", "--out", str(tmp_path / "out")]) == 0


def test_no_step_begins_when_the_time_is_over(tmp_path, monkeypatch, capsys):
    steps = {name: program("import time; time.sleep(60)") for name in ("first", "second")}
    pretend(monkeypatch, tmp_path, steps)
    assert gpu.main(["--seconds", "1"]) == 1
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.endswith("stopped after 1 s")
    assert second.endswith("not begun: no time was left")


@pytest.mark.parametrize(
    "arguments, message", [(["kernal"], "there is no step kernal"), ([], "no CUDA device")]
)
def test_the_script_says_what_it_cannot_do(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", gpu.STEPS)
def test_every_step_for_a_gpu_is_there_to_be_run(name):
    step = gpu.STEPS[name]
    files = [argument for argument in step.arguments if argument.endswith(".py")]
    assert len(files) == 1
    assert (gpu.ROOT / files[0]).exists()
    assert 0 < step.seconds <= 600


def test_a_checker_sees_an_allocation_for_each_tensor():
    environment = gpu.environment_of(gpu.STEPS["memcheck"])
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" not in gpu.environment_of(gpu.STEPS["tests"])


# ---- the benchmarks themselves, at toy size


@pytest.fixture
def without_compiling(monkeypatch):
    """torch.compile takes long, and is not what is tested here."""
    monkeypatch.setattr(torch, "compile", lambda function: function)


@pytest.fixture
def toy_model(monkeypatch):
    monkeypatch.setitem(model.MODELS, "nano", scale.TINY)


def test_the_kernels_row_has_every_way_of_a_cpu(without_compiling):
    row = kernel.measure((8, 16), torch.float32, CPU, rounds=2)
    assert list(row["ways"]) == [
        "copy",
        "gelu forward",
        "gelu backward",
        "gelu",
        "katlib forward",
        "katlib backward",
        "katlib",
        "compiled reference",
        "reference",
    ]


def test_the_kernels_rates_and_ratios_fit_together(without_compiling):
    row = kernel.measure((8, 16), torch.float32, CPU, rounds=2)
    assert row["ways"]["copy"]["share_of_copy"] == 1
    assert row["ways"]["gelu"]["ratio_to_gelu"] == 1
    way = row["ways"]["katlib backward"]
    moved_bytes = 3 * 8 * 16 * 4
    assert way["GB_per_s"] == pytest.approx(moved_bytes / way["ms"]["p50"] / 1e6)


def test_the_kernels_errors_are_those_of_float32(without_compiling):
    row = kernel.measure((8, 16), torch.float32, CPU, rounds=2)
    assert set(row["error"]) == {"y", "dx", "da", "db"}
    assert all(0 <= error < 1e-5 for error in row["error"].values())


def test_a_way_that_does_not_run_here_is_left_out_and_said(capsys):
    def breaks():
        raise RuntimeError("no compiler\nand more")

    ways = {}
    kernel.add_if_it_runs(ways, "compiled", "the compiled one", breaks)
    assert not ways
    assert capsys.readouterr().out == (
        "  the compiled one is left out: RuntimeError: no compiler\n"
    )


def test_public_kernels_are_left_out_where_they_are_not_installed(capsys):
    ways = {}
    case = kernel.draw_case((kernel.TOKENS, 16), torch.float32, CPU)
    kernel.add_peer_ways(ways, case)
    assert not ways
    assert capsys.readouterr().out.count("is left out: ModuleNotFoundError") == 2


def test_a_training_step_of_both_models_is_timed(toy_model, without_compiling):
    row = model.measure("nano", 2, CPU, rounds=2, compile=True)
    assert list(row["ms"]) == ["KAT", "KAT compiled", "ViT", "ViT compiled"]
    assert {"ratio", "ratio_compiled"} <= set(row)
    assert (row["model"], row["batch"]) == ("nano", 2)


def test_both_models_start_with_the_same_attention():
    kat, vit = (model.build(scale.TINY, mlp).blocks[0].attn for mlp in ("grkan", "mlp"))
    assert torch.equal(kat.qkv.weight, vit.qkv.weight)


def test_inference_is_timed_in_every_way(toy_model, without_compiling, monkeypatch):
    monkeypatch.setattr(inference, "onnxruntime_is_installed", lambda: True)
    monkeypatch.setattr(inference, "in_onnxruntime", lambda model, images: lambda: None)
    row = inference.measure("nano", 2, CPU, torch.float32, rounds=2)
    assert list(row["ms"]) == [
        "KAT",
        "KAT compiled",
        "KAT onnxruntime",
        "ViT",
        "ViT compiled",
        "ViT onnxruntime",
    ]
    assert set(row["ratio"]) == {"eager", "compiled", "onnxruntime"}


def test_inference_leaves_onnxruntime_out_where_it_is_missing(
    toy_model, without_compiling, monkeypatch, capsys
):
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    row = inference.measure("nano", 2, CPU, torch.float32, rounds=2)
    assert set(row["ratio"]) == {"eager", "compiled"}
    assert "its rows are left out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 cannot export katlib's operator")
def test_onnxruntime_computes_what_the_model_does():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    kat = model.build(scale.TINY, "grkan").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = kat(images)
    (logits,) = inference.in_onnxruntime(kat, images)()
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_machine_of_the_cost_model_is_measured(monkeypatch):
    monkeypatch.setattr(scale, "SPEED_ROUNDS", 2)
    row = scale.measure_machine(CPU)
    for speed in ("peak", "bandwidth", "call", "call_warm"):
        assert 0 < row[speed] < math.inf
    assert (row["kind"], row["waits"], row["dtype"]) == ("machine", True, "float32")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_the_peak_of_memory_is_not_below_the_present():
    assert scale.process_bytes("VmHWM") >= scale.process_bytes("VmRSS") > 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_an_unknown_entry_of_the_memory_account_is_an_error():
    with pytest.raises(KeyError, match="VmNothing"):
        scale.process_bytes("VmNothing")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_a_larger_batch_takes_more_memory():
    small, large = (
        scale.in_a_process_of_its_own(scale.peak_bytes, "nano", "mlp", batch, "cpu")
        for batch in (2, 32)
    )
    assert 0 < small < large


@pytest.mark.slow
def test_two_processes_take_their_steps_together(monkeypatch):
    monkeypatch.setitem(scale.PARALLEL, "cpu", [("nano", 2)])
    (row,) = scale.measure_parallel(CPU, rounds=1)
    assert (row["model"], row["batch_of_each"], row["processes"]) == ("nano", 2, 2)
    assert list(row["ms"]) == ["alone", "beside", "together", "sum"]
    assert row["efficiency"] > 0


def test_a_single_gpu_has_no_rows_of_two_processes(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert scale.measure_parallel(torch.device("cuda"), rounds=1) == []
    assert "there is one GPU only" in capsys.readouterr().out


# ---- the study's plan


def study_options(**changes) -> SimpleNamespace:
    defaults = {
        "preset": study.PRESET,
        "seeds": None,
        "again": False,
        "conditions": list(study.CONDITIONS),
        "epochs": 1,
        "lr": study.LR,
    }
    return SimpleNamespace(**defaults | changes)


def test_the_study_has_three_seeds_of_each_condition_and_five_of_the_two_main_ones():
    runs = study.plan(study_options())
    seeds = {name: [seed for seed, other in runs if other == name] for name in study.CONDITIONS}
    for name, seeds_of_condition in seeds.items():
        assert seeds_of_condition == list(range(5 if name in study.FIVE else 3))


def test_the_study_takes_the_seeds_and_conditions_that_are_asked_for():
    runs = study.plan(study_options(seeds=[7, 8], conditions=["kat", "frozen"]))
    assert runs == [(7, "kat"), (7, "frozen"), (8, "kat"), (8, "frozen")]


def test_the_study_again_takes_five_unseen_seeds():
    runs = study.plan(study_options(again=True))
    assert set(runs) == {(seed, name) for seed in range(5, 10) for name in study.AGAIN}


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "study"),
        ({"again": True}, "study-again"),
        ({"preset": "cifar-nano"}, "study-cifar-nano"),
        ({"preset": "cifar-nano", "again": True}, "study-cifar-nano-again"),
    ],
)
def test_every_kind_of_study_has_a_folder_of_its_own(changes, name):
    assert study.folder_of(study_options(**changes)) == FOLDER / name


@pytest.mark.slow
def test_a_run_of_the_study_is_stored_once(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "load_cifar10", lambda: tiny_data)
    options = study_options(seeds=[0], conditions=["frozen", "groups-channel"])
    study.run(options)
    study.run(options)
    assert capsys.readouterr().out.count("seed 0") == 2
    folder = tmp_path / "study"
    frozen = json.loads((folder / "frozen-seed0.json").read_text())
    assert (frozen["condition"], frozen["title"]) == ("frozen", "frozen functions")
    assert frozen["activations"]
    assert "activations" not in json.loads((folder / "groups-channel-seed0.json").read_text())


def test_coefficients_are_stored_with_seven_digits():
    activations = {"act": {"numerator": [[0.1234567891, 1.0]], "denominator": [[2e-9 / 3]]}}
    study.round_coefficients(activations)
    assert activations == {
        "act": {"numerator": [[0.1234568, 1.0]], "denominator": [[6.666667e-10]]}
    }


def test_held_out_images_take_the_place_of_the_test_images(tiny_data, monkeypatch):
    monkeypatch.setattr(study, "LR_TRAIN_IMAGES", 50)
    data = study.with_training_images_held_out(tiny_data)
    assert (len(data.train_images), len(data.test_images)) == (50, 14)
    assert torch.equal(data.test_labels, tiny_data.train_labels[50:])


# ---- the published model


@pytest.fixture
def kat():
    return model.build(scale.TINY, "grkan").eval()


@torch.no_grad()
def test_without_an_mlp_the_others_are_as_they_were(kat):
    changed = publish.without_mlp(kat, 1)
    x = torch.randn(2, 5, scale.TINY.embed_dim)
    assert not changed.blocks[1].mlp(x).any()
    assert kat.blocks[1].mlp(x).any()
    assert torch.equal(changed.blocks[0].mlp(x), kat.blocks[0].mlp(x))


def test_the_largest_channel_is_found_and_described():
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    x[..., 2] = 3.0
    x[..., 0] = 1.0
    assert publish.largest_channel(x) == {"channel": 2, "mean": 3.0, "std": 0.0, "share": 0.9}


def test_looking_inside_says_something_of_every_block(tiny_data):
    vit = model.build(scale.TINY, "mlp").eval()
    found = publish.look_inside(vit, tiny_data)
    assert list(found) == ["accuracy", "without_mlp", "largest_channel"]
    assert len(found["without_mlp"]) == len(found["largest_channel"]) == scale.TINY.depth
