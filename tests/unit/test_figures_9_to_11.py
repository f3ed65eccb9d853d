"""The live figures of chapters 9 to 11 on Python's side: what they take, and what they refuse.

tests/browser drives them in a browser.
"""

import pytest
import traitlets

import katlib
from katlib import vit
from katlib.book.cost import CHIPS, rational_instructions
from katlib.cuda import ladder

# ---- ReductionExplorer


def test_the_reduction_offers_all_stages_of_the_ladder_and_the_kernel():
    names = [name for name, _ in katlib.ReductionExplorer().stages]
    assert names == [*ladder.STAGES, "rational.cu"]


def test_a_stage_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="stage5_two_stages"):
        katlib.ReductionExplorer(stage="stage 5")


@pytest.mark.parametrize(
    "bad",
    [
        {"rows": 0},
        {"rows": 1.5},
        {"groups": True},
        {"step": -1},
        {"itemsize": 8},
        {"ladder_threads": 255},
    ],
)
def test_sizes_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        katlib.ReductionExplorer(**bad)


def test_the_reduction_follows_what_is_assigned():
    explorer = katlib.ReductionExplorer()
    explorer.stage, explorer.step, explorer.rows = "stage1_global_atomics", 1, 197
    assert explorer.step == 1
    with pytest.raises(traitlets.TraitError):
        explorer.stage = "stage 5"
    with pytest.raises(traitlets.TraitError, match="groups cannot be assigned"):
        explorer.groups = 4


# ---- RooflineExplorer


def test_the_roofline_starts_from_the_backward_kernel():
    explorer = katlib.RooflineExplorer()
    instructions, arithmetic = rational_instructions(5, 4, backward=True)
    assert explorer.bytes == 6
    assert explorer.instructions == instructions
    assert explorer.share == pytest.approx(arithmetic / instructions)


def test_the_roofline_knows_the_gpus_of_the_cost_model():
    explorer = katlib.RooflineExplorer("T4")
    assert [chip[0] for chip in explorer.chips] == list(CHIPS)
    chip = CHIPS["T4"]
    assert explorer.chips[0][1:] == [chip.issue, chip.arithmetic, chip.bandwidth]


@pytest.mark.parametrize(
    "bad", [{"chip": "Z80"}, {"bytes": 0}, {"instructions": float("nan")}, {"share": 1.5}]
)
def test_a_kernel_that_is_off_the_figure_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        katlib.RooflineExplorer(**bad)


def test_the_still_picture_of_a_roofline_has_the_room_of_its_gpu():
    chosen, *others = katlib.RooflineExplorer("H100")._still()
    assert chosen.name.startswith("H100:")
    assert chosen.y[1] == pytest.approx(CHIPS["H100"].room(16))
    assert [curve.name[:2] for curve in others] == ["T4", "B2"]


def test_the_machines_of_the_roofline_cannot_be_assigned():
    explorer = katlib.RooflineExplorer()
    explorer.chip = "B200"
    with pytest.raises(traitlets.TraitError, match="cannot be assigned"):
        explorer.chips = []
    with pytest.raises(traitlets.TraitError, match="not known"):
        explorer.chip = "Z80"


# ---- BlockExplorer


def parts(explorer: katlib.BlockExplorer, kind: str) -> dict[str, dict]:
    return {part["name"]: part for part in explorer.blocks[kind]}


def test_the_two_blocks_differ_in_their_functions_alone():
    explorer = katlib.BlockExplorer()
    kat, ordinary = parts(explorer, "grkan"), parts(explorer, "mlp")
    assert set(kat) ^ set(ordinary) == {"mlp.act1", "mlp.act2", "mlp.act"}
    names = list(kat)
    assert (names[0], names[-1]) == ("norm1", "+ mlp")


def test_another_size_has_other_shapes():
    explorer = katlib.BlockExplorer(embed_dim=64, num_heads=4, tokens=17, groups=4)
    found = parts(explorer, "grkan")
    assert found["attn.softmax"]["output"] == [1, 4, 17, 16]
    assert found["mlp.fc1"]["output"] == [1, 17, 256]
    assert dict(found["mlp.act1"]["parameters"])["weight_denominator"] == [4, 4]


def test_reading_the_block_leaves_attention_as_it_was():
    before = vit.attention
    katlib.BlockExplorer()
    assert vit.attention is before


@pytest.mark.parametrize("bad", [{"kind": "kat"}, {"tokens": 0}, {"part": "mlp.act3"}])
def test_a_block_that_there_is_not_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        katlib.BlockExplorer(**bad)


def test_the_kind_and_the_part_can_be_assigned():
    explorer = katlib.BlockExplorer()
    explorer.kind, explorer.part = "mlp", "mlp.act"
    with pytest.raises(traitlets.TraitError, match="allowed are norm1"):
        explorer.part = "head"
    with pytest.raises(traitlets.TraitError, match="cannot be assigned"):
        explorer.blocks = {}
