"""What chapter 10 shows: listings, counted costs, measured times and diagrams."""

import pytest
import torch
from matplotlib.figure import Figure

from katlib.book import diagrams_10, ladder
from katlib.book.cost import CHIPS
from katlib.cuda import jit, sass
from katlib.cuda import ladder as stages

ELEMENT = stages.FOLDER / "element.cuh"
SHAPE = (128 * 197, 8, 96)


@pytest.mark.parametrize(
    "draw",
    [
        diagrams_10.layout,
        diagrams_10.atomics_in_l2,
        diagrams_10.two_ways_to_meet,
        diagrams_10.shuffle_tree,
        diagrams_10.two_stages,
        diagrams_10.tiles,
    ],
    ids=lambda draw: draw.__name__,
)
def test_a_diagram_is_a_figure(draw):
    assert isinstance(draw(), Figure)


def test_the_bars_stand_beside_both_budgets():
    (ax,) = diagrams_10.instructions({"a": (80, 70), "b": (50, 40)}, (120, 60)).axes
    assert [bar.get_width() for bar in ax.patches] == [80, 50, 70, 40]
    assert [line.get_xdata()[0] for line in ax.lines] == [120, 60]


# ---- listings


def test_a_listing_is_the_file_itself():
    assert ladder.listing(ELEMENT).text == ELEMENT.read_text().rstrip()


def test_a_part_of_a_file_ends_before_the_next_and_loses_its_margin():
    path = stages.FOLDER / "stage4_block_reduction.cu"
    part = ladder.listing(path, "    __shared__", "    // no thread may read").text
    assert part.startswith("__shared__ float warps")
    assert part.endswith("\n}")


def test_a_listing_of_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="not found"):
        ladder.listing(ELEMENT, "stage 7")


@pytest.mark.parametrize("name, language", [("element.cuh", "cuda"), ("in_triton.py", "python")])
def test_a_listing_has_the_colours_of_its_language(name, language):
    shown = ladder.listing(stages.FOLDER / name)._repr_markdown_()
    assert shown.startswith(f"```{language}\n")


# ---- the counted cost

needs_cuobjdump = pytest.mark.skipif(sass.cuobjdump() is None, reason="there is no cuobjdump")


@pytest.fixture(scope="module")
def costs():
    return {cost.name: cost for cost in ladder.costs(*SHAPE)}


@needs_cuobjdump
def test_every_stage_and_the_kernel_are_counted(costs):
    assert [*costs] == [*stages.STAGES, "rational.cu"]
    assert all(cost.registers <= 64 for cost in costs.values())


@needs_cuobjdump
def test_stages_that_differ_only_in_their_end_have_the_same_loop(costs):
    loops = [costs[stage].instructions for stage in stages.STAGES if stage[5] in "1345"]
    for dtype in zip(*loops):
        assert max(dtype) - min(dtype) <= 2


@needs_cuobjdump
def test_the_text_reads_the_table_rightly(costs):
    """Of bfloat16's 60, stage 5 needs more, packs nearly all, and rational.cu fewer."""
    budget = CHIPS["H100"].room(6)
    five, six = costs["stage5_two_stages"], costs["stage6_packs"]
    assert six.instructions[1] < budget < five.instructions[1]
    assert costs["rational.cu"].instructions[1] < 0.8 * budget
    two = costs["stage2_shared_atomics"].instructions
    one = costs["stage1_global_atomics"].instructions
    assert all(1.8 < after / before < 2 for before, after in zip(one, two))


@needs_cuobjdump
def test_a_partial_sum_of_each_block_is_kept(costs):
    # 82 blocks of stage 5 for each of 8 groups, and 660 of rational.cu, each for all groups
    assert costs["stage5_two_stages"].partial == 4 * 10 * 8 * 82
    assert costs["rational.cu"].partial == 4 * 10 * 8 * 660


@needs_cuobjdump
def test_the_retry_loop_reads_adds_swaps_and_jumps():
    macros = stages.definitions(torch.empty(0), torch.empty(8, 6), torch.empty(8, 4))
    cubin = jit.compile(stages.FOLDER / "stage2_shared_atomics.cu", macros, ladder.H100)
    code = [line.split()[0] for line in ladder.retry_loop(cubin).text.splitlines()]
    assert (code[0], code[2]) == ("LDS", "FADD")
    assert code[3].startswith("ATOMS.CAS") and len(code) == 6


@needs_cuobjdump
def test_one_of_the_kinds_of_traffic_is_left_in_each_stage(costs):
    assert costs["stage1_global_atomics"].to_global == 10 * SHAPE[0] * SHAPE[1] * SHAPE[2]
    assert costs["stage4_block_reduction"].to_global < 10_000
    for stage in ("stage5_two_stages", "stage6_packs", "rational.cu"):
        assert costs[stage].to_global == 0 < costs[stage].partial < 10**6


@needs_cuobjdump
def test_the_cost_of_a_stage_is_said_beside_the_one_before(capsys):
    ladder.say_cost("stage4_block_reduction", *SHAPE)
    said = capsys.readouterr().out
    assert "7,920 global atomics (before: 1,679,360)" in said
    assert "shared" not in said


# ---- what a GPU took


def summary(ms):
    return {"values": 12, "p20": 0.9 * ms, "p50": ms, "p80": 1.1 * ms}


RECORD = {
    "device_name": "Tesla T4",
    "date": "2026-11-28",
    "measured": {"copy, ms": summary(0.8), "stage1_global_atomics, ms": summary(2.4)},
}


def test_times_have_their_share_of_a_copys_rate():
    # 100,000 elements: a copy moves 0.8 MB, and a backward pass 1.2 MB in three times the time
    text = ladder.times_table([RECORD], 100_000).text
    assert "50.0%" in text
    assert "2.160, 2.400, 2.640" in text


def test_without_times_one_line_says_so(capsys):
    assert ladder.times_table([], 100) is None
    assert capsys.readouterr().out.count("\n") == 1


def test_stored_times_are_those_of_the_chapter(tmp_path):
    (tmp_path / "katlib-chapter10-tesla-t4.json").write_text('{"chapter": 10}')
    (tmp_path / "katlib-chapter09-tesla-t4.json").write_text('{"chapter": 9}')
    assert ladder.stored_times(tmp_path) == [{"chapter": 10}]


def test_a_profile_names_what_warps_wait_for():
    metrics = {
        "dram_percent": 91.2,
        "stalled_selected": 9.0,
        "stalled_long_scoreboard": 5.0,
        "stalled_barrier": 0.1,
    }
    row = {"kernel": "rational_backward", "dtype": "bfloat16", "metrics": metrics}
    text = ladder.profile_table([{"device_name": "H100", "rows": [row]}]).text
    assert "91%" in text
    assert "long scoreboard" in text


def test_without_profiles_there_is_no_table():
    assert ladder.profile_table([]) is None
