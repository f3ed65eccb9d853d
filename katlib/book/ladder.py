"""What chapter 10 shows of the kernels: listings, their counted cost, and what a GPU took."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from katlib.book import diagrams_10
from katlib.book.cost import CHIPS
from katlib.book.html import Html, table
from katlib.book.results import FOLDER
from katlib.cuda import SOURCE, emulator, jit, ladder, plan, sass, vector_width
from katlib.rational import rational_reference

# the H100's multiprocessors, and what each of them holds
H100, MULTIPROCESSORS, REGISTERS, MOST_BLOCKS = 90, 132, 65_536, 8
# x, g and dx in float32
BYTES = 3 * 4
# ten float32 sums of a block
PARTIAL_BYTES = 10 * 4
DTYPES = (torch.float32, torch.bfloat16)


# ---- listings


@dataclass
class Listing:
    """A piece of a source, which a notebook shows with its colours."""

    text: str
    language: str = "cuda"

    def _repr_markdown_(self) -> str:
        return f"```{self.language}\n{self.text}\n```"

    def __repr__(self) -> str:
        # a notebook stores this beside the listing, where it would only repeat it
        return ""


def listing(path: Path, start: str = "", end: str = "") -> Listing:
    """A file, or the part of it from the text `start` until before the text `end`.

    Args:
        path: a file, whose ending says in which language it is.
        start, end: texts that are in it; nothing stands for the whole file.

    Raises:
        ValueError: they are not in it.

    Example:
        >>> from katlib.book.ladder import listing
        >>> from katlib.cuda import ladder
        >>> path = ladder.FOLDER / "element.cuh"
        >>> print(listing(path, "constexpr int COEFF", "// A thread").text)
        constexpr int COEFFICIENTS = M + 1 + N;
    """
    text = path.read_text(encoding="utf-8")
    # whole lines, with the spaces before the first one
    text = text[text.rindex("\n", 0, text.index(start)) + 1 :] if start else text
    text = text[: text.index(end, len(start))] if end else text
    lines = text.rstrip().splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines if line)
    language = "python" if path.suffix == ".py" else "cuda"
    return Listing("\n".join(line[margin:] for line in lines), language)


# ---- the counted cost


@dataclass(frozen=True)
class Cost:
    """What one backward kernel asks of an H100, for x (rows, G, span)."""

    name: str
    # in the main loop for each element, in float32 and in bfloat16
    instructions: tuple[float, float]
    # of a thread, in float32
    registers: int
    # atomic additions, and bytes of memory for the partial sums
    to_global: int
    to_shared: int
    partial: int


@functools.cache
def costs(rows: int, groups: int, span: int) -> list[Cost]:
    """The stages of the ladder, and rational.cu, from their machine code and their launch.

    Raises:
        OSError: NVRTC or cuobjdump is missing.
    """
    stages = [_cost_of_stage(stage, rows, groups, span) for stage in ladder.STAGES]
    return [*stages, _cost_of_rational(rows, groups, span)]


def resident_blocks(registers: int) -> int:
    """How many blocks of 256 threads a multiprocessor of an H100 holds, by a thread's registers."""
    of_a_block = jit.THREADS * 8 * math.ceil(registers / 8)
    return min(MOST_BLOCKS, REGISTERS // of_a_block)


def _machine_code(stage: str, groups: int, span: int, dtype: torch.dtype) -> sass.Kernel:
    x = torch.empty(0, dtype=dtype)
    width = vector_width(span, x.itemsize) if stage == "stage6_packs" else 1
    macros = ladder.definitions(x, torch.empty(groups, 6), torch.empty(groups, 4), width)
    cubin = jit.compile(ladder.FOLDER / f"{stage}.cu", macros, H100)
    return sass.inspect(cubin, width)["backward"]


def _cost_of_stage(stage: str, rows: int, groups: int, span: int) -> Cost:
    single, half = (_machine_code(stage, groups, span, dtype) for dtype in DTYPES)
    elements = rows * groups * span
    blocks = MULTIPROCESSORS * resident_blocks(single.registers) // groups * groups
    to_global, to_shared = {
        "stage1_global_atomics": (elements, 0),
        "stage2_shared_atomics": (blocks, elements),
        "stage3_registers": (blocks * jit.THREADS, 0),
        "stage4_block_reduction": (blocks, 0),
    }.get(stage, (0, 0))
    partial = 0 if to_global else PARTIAL_BYTES * blocks
    instructions = single.instructions, half.instructions
    return Cost(stage, instructions, single.registers, 10 * to_global, 10 * to_shared, partial)


def _cost_of_rational(rows: int, groups: int, span: int) -> Cost:
    single, half = (sass.measure(dtype, H100)[0]["rational_backward"] for dtype in DTYPES)
    threads = resident_blocks(single.registers) * jit.THREADS
    packs = span // vector_width(span, 4)
    parts = plan(rows, groups, packs, MULTIPROCESSORS, threads).parts
    instructions = single.instructions, half.instructions
    return Cost(SOURCE.name, instructions, single.registers, 0, 0, PARTIAL_BYTES * groups * parts)


def say_cost(stage: str, rows: int, groups: int, span: int) -> None:
    """Prints in one line what a stage asks for, and what the stage before it asked for."""
    try:
        found = costs(rows, groups, span)
    except OSError as missing:
        print(f"Not counted here: {missing}.")
        return
    names = [cost.name for cost in found]
    here = found[names.index(stage)]
    before = found[max(names.index(stage) - 1, 0)]
    counts = (
        ("instructions per element", *(round(cost.instructions[0]) for cost in (here, before))),
        ("global atomics", here.to_global, before.to_global),
        ("shared atomics", here.to_shared, before.to_shared),
        ("bytes of partial sums", here.partial, before.partial),
    )
    parts = [
        f"{now:,} {what}" + (f" (before: {then:,})" if then and now != then else "")
        for what, now, then in counts
        if now or then
    ]
    print(f"Counted for an H100: {', '.join(parts)}.")


def cost_table(rows: int, groups: int, span: int) -> Html | None:
    """`costs` as a table; None, after a word, where they cannot be counted."""
    try:
        found = costs(rows, groups, span)
    except OSError as missing:
        print(f"Not counted here: {missing}.")
        return None
    columns = {
        "kernel": lambda c: c.name,
        "instructions, float32": lambda c: f"{c.instructions[0]:.0f}",
        "bfloat16": lambda c: f"{c.instructions[1]:.0f}",
        "registers": lambda c: str(c.registers),
        "global atomics": lambda c: f"{c.to_global:,}",
        "shared atomics": lambda c: f"{c.to_shared:,}",
        "partial sums, KB": lambda c: f"{c.partial / 1e3:.0f}",
    }
    return table(
        found,
        columns,
        f"Backward for x ({rows:,}, {groups}, {span}) on an H100: instructions per element and "
        f"registers per thread from the machine code, and atomic additions and bytes of partial "
        f"sums in a launch that fills its {MULTIPROCESSORS} multiprocessors.",
    )


def instruction_bars(rows: int, groups: int, span: int) -> Figure | None:
    """`costs` as bars beside the budget; None, after a word, where they cannot be counted."""
    try:
        found = costs(rows, groups, span)
    except OSError as missing:
        print(f"Not counted here: {missing}.")
        return None
    room = CHIPS["H100"].room
    return diagrams_10.instructions(
        {cost.name.partition("_")[0]: cost.instructions for cost in found},
        (room(BYTES), room(BYTES / 2)),
    )


def retry_loop(cubin: bytes) -> Listing:
    """The first loop around an atomic addition to shared memory, in an H100's machine code.

    Raises:
        OSError: cuobjdump is missing.
    """
    code = sass.main_loops(cubin)["backward"]
    swap = next(place for place, text in enumerate(code) if text.startswith("ATOMS"))
    first = max(place for place in range(swap) if code[place].startswith("LDS"))
    last = next(place for place in range(swap, len(code)) if "BRA" in code[place])
    return Listing("\n".join(code[first : last + 1]), "text")


def triton_kernels() -> tuple[sass.Kernel, ...]:
    """What Triton makes of `ladder.in_triton` in float32 and bfloat16; empty without triton.

    Triton compiles for an H100 without one. As in a launch for the chapter's tensors, it is told
    that addresses and sizes are divisible by 16, so that each load and store has 16 bytes.
    """
    if not find_spec("triton") or sass.cuobjdump() is None:
        return ()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from katlib.cuda.ladder import in_triton

    kernels = []
    for dtype, name in zip(DTYPES, ("*fp32", "*bf16")):
        types = dict.fromkeys(("g", "x"), name) | dict.fromkeys(("a", "b"), "*fp32")
        types |= {"dx": name, "partial": "*fp32", "rows": "i32", "span": "i32", "TILE": "constexpr"}
        aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(types) - 1)}
        constants = {"TILE": in_triton.TILE}
        source = ASTSource(in_triton.backward, types, constexprs=constants, attrs=aligned)
        compiled = compile(source, target=GPUTarget("cuda", H100, 32))
        kernels.append(sass.inspect(compiled.asm["cubin"], 16 // dtype.itemsize)["backward"])
    return tuple(kernels)


# ---- a reader's own stage


def run_fold(source: str) -> tuple[list[Tensor], list[Tensor], Counter[str]]:
    """Runs stage 3 with a function `add_up_block` of the reader's in the place of its last line.

    Four blocks, two for each of two groups, work in the emulator, which also looks for races.

    Args:
        source: the function `add_up_block(sums, da, db)`, in CUDA.

    Returns:
        da and db; the same from float64; and how many additions were atomic, by memory.

    Raises:
        RuntimeError: it does not compile, or the emulator has found a mistake.
        OSError: the emulator cannot run here.
    """
    stage = (ladder.FOLDER / "stage3_registers.cu").read_text(encoding="utf-8")
    head, _, body = stage[: stage.rindex("    for (int k")].partition("extern")
    # an answer may stand on one line
    pragma = '#pragma GCC diagnostic ignored "-Wmisleading-indentation"\n'
    whole = f"{pragma}{head}{source}\nextern{body}    add_up_block(sums, da, db);\n}}\n"
    x, g = torch.randn(2, 300, 2, 24, generator=torch.Generator().manual_seed(1))
    a, b = torch.eye(6)[:2] + 0.1, torch.ones(2, 4)
    dx, da, db = torch.empty_like(x), torch.zeros(2, 6), torch.zeros(2, 4)
    kernels = emulator.load(whole, ladder.definitions(x, a, b), ladder.FOLDER, races=True)
    tensors = g, x, a, b, dx, da, db
    kernels.launch("backward", (2, 2), ladder.BLOCK, "PPPPPPPiii", *tensors, *x.shape)
    leaves = [t.double().requires_grad_() for t in (x.flatten(1), a, b)]
    y = rational_reference(*leaves)
    exact = torch.autograd.grad(y, leaves[1:], g.flatten(1).double())
    return [da, db], list(exact), kernels.launched.atomics


# ---- what a GPU took


def stored_times(folder: Path = FOLDER) -> list[dict]:
    """What readers' GPUs and ours measured in chapter 10: the files of `save_measurements`."""
    paths = sorted(folder.glob("katlib-chapter10-*.json")) if folder.is_dir() else []
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def times_table(records: list[dict], elements: int) -> Html | None:
    """Milliseconds, GB/s and share of a copy by stage; None, after a word, without records.

    Args:
        records: from `stored_times`.
        elements: of the tensors that the chapter times.
    """
    if not records:
        print("Not yet measured on a GPU: the milliseconds of each stage.")
        return None
    columns = {
        "GPU": lambda r: r[0],
        "kernel": lambda r: r[1],
        "ms (p20, p50, p80)": lambda r: ", ".join(f"{r[2][q]:.3f}" for q in ("p20", "p50", "p80")),
        "GB/s": lambda r: f"{r[3]:,.0f}",
        "of a copy": lambda r: f"{r[4]:.1%}",
    }
    lines = [line for record in records for line in _lines(record, elements)]
    dates = ", ".join(sorted({record["date"] for record in records}))
    return table(lines, columns, f"Backward in float32, {elements:,} elements. Measured {dates}.")


def _lines(record: dict, elements: int) -> Iterator[tuple]:
    """(GPU, kernel, summary, GB/s, share of a copy's rate) for each kernel of a record."""
    measured = record["measured"]
    copy = 2 * 4 * elements / measured["copy, ms"]["p50"]
    for name, summary in measured.items():
        kernel, _, unit = name.rpartition(", ")
        if unit == "ms" and kernel != "copy":
            rate = BYTES * elements / summary["p50"]
            yield record["device_name"], kernel, summary, rate / 1e6, rate / copy


def stored_profiles(folder: Path = FOLDER) -> list[dict]:
    """What NVIDIA's profiler said of rational.cu: the files of `benchmarks/gpu_steps.py`."""
    paths = sorted(folder.glob("profile-*.json")) if folder.is_dir() else []
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def profile_table(records: list[dict]) -> Html | None:
    """Shares of the memory's and of the issue slots' time by kernel; None without records."""
    rows = [(record["device_name"], row) for record in records for row in record["rows"]]
    if not rows:
        return None
    columns = {
        "GPU": lambda r: r[0],
        "kernel": lambda r: f"{r[1]['kernel']}, {r[1]['dtype']}",
        "DRAM busy": lambda r: _percent(r[1]["metrics"], "dram_percent"),
        "issue slots used": lambda r: _percent(r[1]["metrics"], "issue_percent"),
        "warps resident": lambda r: _percent(r[1]["metrics"], "warps_percent"),
        "waits mostly for": lambda r: _main_stall(r[1]["metrics"]),
    }
    return table(rows, columns, "NVIDIA's profiler on rational.cu, one launch with a cold cache.")


def _percent(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.0f}%" if name in metrics else ""


def _main_stall(metrics: dict[str, float]) -> str:
    stalls = {
        name.removeprefix("stalled_"): value
        for name, value in metrics.items()
        # a warp that issues, or could, does not wait
        if name.startswith("stalled_") and not name.endswith("selected")
    }
    return max(stalls, key=lambda name: stalls[name]).replace("_", " ") if stalls else ""
