"""The benchmarks' own machinery, and the smallest run of what they measure.

Tested are: which way takes part in which round, and what a result says about where it comes from.
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
import warnings
from pathlib import Path
from types import SimpleNamespace

import fake_gpu
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
import variants
from emulator.checking import check
from oracle import data, with_zeros

import katlib.cuda
from katlib.book.results import FOLDER
from katlib.cuda import jit, sass

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="the emulator needs g++")


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


@pytest.mark.parametrize(
    "key, value", [("commit", "another"), ("torch", "1.0"), ("device_name", "another")]
)
def test_only_rows_measured_here_and_now_are_added_to(key, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    timing.store("thing-cpu", "a thing", CPU, 7, [{"ms": 1.0}])
    assert timing.stored_rows("thing-cpu", CPU) == [{"ms": 1.0}]
    path = tmp_path / "thing-cpu.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert timing.stored_rows("thing-cpu", CPU) == []
    assert "written anew" in capsys.readouterr().out


def test_without_a_file_there_are_no_stored_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    assert timing.stored_rows("thing-cpu", CPU) == []


# ---- timing on a GPU, by the clocks of one that is not there

MICROSECOND = 1e-6
FLUSH_US = 90


@pytest.fixture
def chip(monkeypatch):
    """A GPU on which time passes only where a test says so."""
    chip = fake_gpu.FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", chip.event)
    monkeypatch.setattr(torch.cuda, "_sleep", chip.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", chip.synchronize)
    monkeypatch.setattr(timing, "perf_counter", chip.now)
    flush = SimpleNamespace(zero_=lambda: chip.queue(FLUSH_US * MICROSECOND))
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: flush)
    return chip


def call(chip, host_us, device_us):
    """A call of two kernels that keeps the host and the device so long."""

    def run():
        for _ in range(2):
            chip.keep_host(host_us / 2 * MICROSECOND)
            chip.queue(device_us / 2 * MICROSECOND)

    return run


def measured_us(run, rounds=6):
    """The microseconds of a call in each round."""
    return [1e3 * ms for ms in timing.turns({"call": run}, CUDA, rounds=rounds)["call"]]


@pytest.fixture
def without_sleep(monkeypatch):
    """What is measured if the device begins as soon as it can."""
    monkeypatch.setattr(timing, "sleep", lambda cycles: None)
    monkeypatch.setattr(timing, "_cycles_per_ms", lambda device: 1.0)


@pytest.mark.filterwarnings("ignore:call. its time holds the host's")
def test_without_a_sleep_a_slow_host_would_be_timed(chip, without_sleep):
    """What makes the sleep necessary: 150 us of Python pass for a kernel of 20."""
    microseconds = measured_us(call(chip, host_us=150, device_us=20))
    assert all(t > 60 for t in microseconds)


@pytest.mark.parametrize("host_us", [1, 46, 150, 5_000, 100_000])
def test_the_time_is_the_devices_however_slow_the_host_is(chip, host_us):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        microseconds = measured_us(call(chip, host_us, device_us=20))
    assert microseconds == pytest.approx([20] * 6, rel=1e-3)


def test_a_call_that_is_compiled_first_is_timed_without_the_compiler(chip):
    to_compile = [30.0]

    def run():
        chip.keep_host(to_compile.pop() if to_compile else 40 * MICROSECOND)
        chip.queue(20 * MICROSECOND)

    assert measured_us(run) == pytest.approx([20] * 6, rel=1e-3)


def test_the_device_sleeps_at_least_twice_as_long_as_the_host_needs(chip, monkeypatch):
    sleeps = []
    monkeypatch.setattr(timing, "_cycles_per_ms", lambda device: 1e-3 * fake_gpu.CYCLES_PER_SECOND)
    monkeypatch.setattr(timing, "sleep", lambda cycles: (sleeps.append(cycles), chip.sleep(cycles)))
    measured_us(call(chip, host_us=400, device_us=20))
    seconds = [cycles / fake_gpu.CYCLES_PER_SECOND for cycles in sleeps]
    assert all(2 * 400 <= s / MICROSECOND + 1 < 10 * 400 for s in seconds)


def test_a_device_whose_clock_has_risen_since_sleeps_longer(chip, monkeypatch):
    """An idle one measures its cycles at a sixth of the rate, so the first sleeps are short."""
    monkeypatch.setattr(
        timing, "_cycles_per_ms", lambda device: 1e-3 * fake_gpu.CYCLES_PER_SECOND / 6
    )
    assert measured_us(call(chip, 5_000, 20)) == pytest.approx([20] * 6, rel=1e-3)


def test_a_call_that_waits_for_the_device_is_named_and_costs_little(chip):
    def run():
        call(chip, host_us=40, device_us=20)()
        chip.synchronize()

    with pytest.warns(UserWarning, match="call: its time holds the host's") as warned:
        measured_us(run, rounds=50)
    assert len(warned) == 1
    # it was tried with longer sleeps at its first call only
    assert chip.now() < 0.5


def test_the_hosts_time_is_that_of_python_alone(chip):
    run = call(chip, host_us=46, device_us=10_000)
    assert timing.host_microseconds(run, CUDA, rounds=5) == pytest.approx(46)


# ---- the clocks of the chapters


def functions_of(notebook, name):
    """What the cell that defines this function defines; the cell is run without its outputs."""
    cells = json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text())["cells"]
    (source,) = (s for cell in cells if f"def {name}(" in (s := "".join(cell["source"])))
    names = {"torch": torch, "time": SimpleNamespace(perf_counter=timing.perf_counter)}
    exec(source.split("\nif torch.cuda")[0], names)
    return names


@pytest.mark.parametrize("host_us", [46, 5_000])
def test_chapter_10_times_the_gpu_and_not_python(chip, host_us):
    names = functions_of("10_kernel_ladder", "time_stages")
    milliseconds = names["gpu_milliseconds"](call(chip, host_us, device_us=20))
    assert milliseconds == pytest.approx(0.02, rel=1e-3)


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


def test_a_gpu_measures_what_models_have_first_and_what_takes_long_last():
    jobs = kernel.jobs(CUDA, ["bfloat16", "float32"], ["rows", "compared"])
    model_rows = [job for job in jobs[:10] if job.shape[0] == 25216]
    assert {job.shape[1] for job in model_rows} == {192, 384, 768, 1536, 3072}
    assert {(64, 128), (1, 192), (197, 192)} == {job.shape for job in jobs[10:16]}
    assert [job.compared for job in jobs] == [False] * 26 + [True] * 2


def test_a_gpu_measures_100_million_elements_of_every_width():
    sizes = [rows * width for rows, width in kernel.LARGE_SHAPES]
    assert all(1e8 <= size < 1.01e8 for size in sizes)


def test_a_cpu_measures_what_it_did():
    jobs = kernel.jobs(CPU, ["float32"], ["rows", "compared"])
    assert [job.shape for job in jobs] == list(kernel.CPU_SHAPES)
    assert all(job.compared for job in jobs)


def test_a_row_takes_the_place_of_the_one_before():
    first, second = ({"shape": [1, 2], "dtype": dtype} for dtype in ("float32", "bfloat16"))
    rows = [first, second]
    kernel.put(rows, first | {"new": True})
    kernel.put(rows, {"shape": [2, 2], "dtype": "float32"})
    assert [row.get("new") for row in rows] == [True, None, None]


def test_a_row_that_does_not_fit_the_memory_does_not_stop_the_others(monkeypatch, capsys):
    def measure(shape, *arguments):
        if shape[0] == 197:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"shape": list(shape), "dtype": "float32"}

    stored = []
    monkeypatch.setattr(kernel, "measure", measure)
    monkeypatch.setattr(kernel, "CPU_SHAPES", ((8, 16), (197, 16), (9, 16)))
    monkeypatch.setattr(kernel, "print_row", lambda row: None)
    monkeypatch.setattr(kernel, "store", lambda *arguments: stored.append(len(arguments[-1])))
    kernel.run_rows(kernel.parse_arguments(["--device", "cpu", "--dtype", "float32"]), CPU)
    assert stored == [1, 2]
    assert "(197, 16) float32 is left out: OutOfMemoryError" in capsys.readouterr().out


def test_a_graph_is_compared_with_a_graph():
    times = {
        "copy": [1.0] * 3,
        "gelu": [9.0] * 3,
        "gelu graph": [2.0] * 3,
        "katlib graph": [4.0] * 3,
    }
    assert kernel.summary("katlib graph", times, 8)["ratio_to_gelu"] == 2


# ---- the kernel's benchmark on a GPU that is not there


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The results of a dry run with few shapes, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("rehearsal"), io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        monkeypatch.setattr(fake_gpu, "REHEARSAL", folder)
        for shapes in ("MODEL_SHAPES", "COMPARED_SHAPES", "VARIANT_SHAPES"):
            monkeypatch.setattr(kernel, shapes, ((25216, 192),))
        monkeypatch.setattr(kernel, "SMALL_SHAPES", ((1, 192),))
        monkeypatch.setattr(kernel, "LARGE_SHAPES", ())
        dry_run = ["--dry-run", "--dtype", "bfloat16"]
        kernel.main([*dry_run, "--part", "rows"])
        kernel.main([*dry_run, "--part", "compared", "--add"])
        kernel.main([*dry_run, "--variant", "blocks3"])
    return SimpleNamespace(
        kernel=json.loads((folder / "kernel-f1.json").read_text()),
        variants=json.loads((folder / "variants-f1.json").read_text()),
        printed=printed.getvalue(),
    )


PARTS = ("", " forward", " backward")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("way", ["gelu", "katlib", "kernel", "gelu graph", "katlib graph"])
def test_a_dry_run_has_every_way_of_a_gpu(rehearsed, way):
    for row in rehearsed.kernel["rows"]:
        assert {way + part for part in PARTS} <= set(row["ways"]) & set(row["host_us"])


@pytest.mark.slow
@needs_compiler
def test_a_dry_run_adds_the_ladder_to_the_rows_before(rehearsed):
    compared, small = rehearsed.kernel["rows"]
    assert "stage1_global_atomics backward" in compared["ways"]
    assert "stage1_global_atomics backward" not in small["ways"]
    assert (compared["shape"], small["shape"]) == ([4, 192], [1, 192])


@pytest.mark.slow
@needs_compiler
def test_a_dry_run_computes_what_is_right(rehearsed):
    for row in rehearsed.kernel["rows"]:
        assert max(row["error"]["da"], row["error"]["db"]) < 1e-5
        assert max(row["error"]["y"], row["error"]["dx"]) < 1e-2


@pytest.mark.slow
@needs_compiler
def test_nothing_but_what_is_not_installed_is_left_out_of_a_dry_run(rehearsed):
    left_out = [line for line in rehearsed.printed.splitlines() if "left out" in line]
    assert all("ModuleNotFoundError" in line for line in left_out)


@pytest.mark.slow
@needs_compiler
def test_a_dry_run_times_a_variant_beside_the_present_kernel(rehearsed):
    (row,) = rehearsed.variants["rows"]
    assert list(row["ways"])[1::3] == ["present forward", "blocks3 forward"]
    assert row["ways"]["present"]["ratio_to_present"] == 1
    assert row["left_out"] == {}
    assert "over all 1 rows" in rehearsed.printed


def test_a_dry_run_leaves_the_results_alone():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(fake_gpu, "pretend", contextlib.nullcontext)
        with fake_gpu.rehearsal():
            assert timing.RESULTS == ROOT / "build/rehearsal"
    assert timing.RESULTS == FOLDER


@needs_compiler
def test_on_the_fake_gpu_the_operator_runs_the_cuda_kernels():
    with fake_gpu.pretend():
        case = kernel.draw_case((4, 192), torch.float32, CUDA)
        assert case.x.device == torch.device("cuda", 0)
        assert max(kernel.errors(case).values()) < 1e-5
        not_permitted = pytest.raises(RuntimeError, match="loading a kernel is not permitted")
        with not_permitted, torch.cuda.graph(torch.cuda.CUDAGraph()):
            katlib.rational(case.x.half(), case.a, case.b)


# ---- variants of the kernel


def edited(tmp_path, name, old, new):
    """A file with the present kernel, in which this text is replaced."""
    text = katlib.cuda.SOURCE.read_text()
    assert text.count(old) == 1
    path = tmp_path / f"{name}.cu"
    path.write_text(text.replace(old, new))
    return path


@needs_compiler
def test_a_variant_that_is_wrong_or_does_not_compile_is_named_and_left_out(tmp_path):
    sign, store = "< 0 ? total : -total", "        y[walk.offset] = out;\n"
    sources = {
        "same": edited(tmp_path, "same", sign, sign + " "),
        "wrong": edited(tmp_path, "wrong", sign, "< 0 ? -total : total"),
        "nan": edited(tmp_path, "nan", store, f"out.element[0] = TYPE(0.0f / 0.0f);{store}"),
        "broken": edited(tmp_path, "broken", store, "y[nowhere] = out;"),
    }
    with fake_gpu.pretend():
        right, left_out = kernel.right_ones(
            sources, kernel.draw_case((4, 192), torch.float32, CUDA)
        )
    assert set(right) == {"present", "same"}
    assert left_out["wrong"].startswith("wrong: ") and left_out["nan"].startswith("wrong: ")
    assert "nowhere" in left_out["broken"]


@pytest.mark.parametrize(
    "error, is_wrong", [(1e-6, False), (1.9e-3, False), (2.1e-3, True), (math.nan, True)]
)
def test_a_variants_error_is_compared_with_the_present_kernels(error, is_wrong):
    assert kernel.is_wrong({"y": error}, {"y": 1e-3}, torch.bfloat16) == is_wrong


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_prepared_variant_computes_what_the_present_kernel_does(name, dtype):
    source = variants.source_of(name)
    with variants.in_use(source):
        check(*with_zeros(*data(257, 8, 24, dtype=dtype)))
        check(*data(40, 51, 7, dtype=dtype))
        check(*data(5, 2, 4096, m=6, n=6, dtype=dtype))


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_prepared_variant_fits_the_present_kernel(name):
    text = variants.text_of(name)
    assert text.startswith(f"// Variant {name} of rational.cu: {variants.VARIANTS[name].what}.")
    assert text.count('extern "C" __global__') == 3


def test_a_variant_whose_lines_are_gone_is_an_error(monkeypatch, tmp_path):
    bounds = variants.BACKWARD_BOUNDS
    monkeypatch.setattr(katlib.cuda, "SOURCE", edited(tmp_path, "other", bounds, "void"))
    with pytest.raises(ValueError, match="blocks3 no longer fits rational"):
        variants.text_of("blocks3")


def test_a_variant_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="there is no variant blocks7; there are blocks3"):
        variants.source_of("blocks7")


def test_a_file_is_a_variant(tmp_path):
    path = tmp_path / "mine.cu"
    path.touch()
    assert variants.source_of(str(path)) == path


def can_count():
    try:
        return bool(jit.nvrtc() and sass.cuobjdump())
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_count(), reason="there is no NVRTC or no cuobjdump here")
@pytest.mark.parametrize("name, most", [("blocks3", 80), ("blocks5", 48), ("streaming", 64)])
def test_a_variants_registers_are_counted_without_a_gpu(name, most, capsys):
    kernel.main(["--device", "cpu", "--variant", name, "--dtype", "bfloat16"])
    present, line = capsys.readouterr().out.splitlines()[1:]
    assert present.split()[0] == "present"
    registers = int(line.split()[6])
    assert line.split()[:2] == [name, "bfloat16"]
    assert 0.75 * most <= registers <= most


@pytest.mark.skipif(not can_count(), reason="there is no NVRTC or no cuobjdump here")
def test_the_streaming_variant_reads_and_writes_for_one_use(tmp_path):
    source = variants.source_of("streaming")
    tensors = torch.empty(0, 1, 8, dtype=torch.bfloat16), torch.empty(1, 6), torch.empty(1, 4)
    macros = dict(katlib.cuda.definitions(*tensors, width=8, wide=False))
    cubin = tmp_path / "streaming.cubin"
    cubin.write_bytes(jit.compile(source, macros, 90))
    code = subprocess.check_output([sass.cuobjdump(), "--dump-sass", cubin], text=True)
    # x, and x and g; y, and dx: 16 bytes at once
    assert code.count("LDG.E.EF.128") == 3
    assert code.count("STG.E.EF.128") == 2


# ---- the benchmarks of models


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
    small, large = (scale.peak_bytes("nano", "mlp", batch, "cpu") for batch in (2, 32))
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
