"""The two handles of the start page, and the live figures of chapters 9 to 11.

Their numbers, code and shapes are katlib's.
"""

import inspect
import math
import textwrap
from unittest import mock

import pytest
import torch
from test_live import PHONE, coefficients, curve, drag, figure, knob, number

import katlib
from katlib import reference
from katlib.book import cost
from katlib.cuda import jit, ladder
from katlib.cuda.emulator import Emulated, emulation
from katlib.rational import initial_coefficients

pytestmark = pytest.mark.book

START = "book/intro.html"

# ---- the start page: two handles and a goal


@pytest.fixture
def newcomer(show_figure):
    handles = {"a0": 0.8, "a2": 1.0}
    return show_figure(katlib.RationalExplorer("gelu", target="gelu", handles=handles))


def visible_handles(box) -> list[str]:
    knobs = box.locator(".knob").all()
    return [knob.get_attribute("data-name") for knob in knobs if knob.is_visible()]


def goal(box) -> str:
    box.page.wait_for_timeout(60)
    return box.locator('[data-key="goal"]').text_content()


def pull_to_gelu(box) -> None:
    """Moves both handles down onto GELU by the keyboard, a0 first."""
    a, _ = initial_coefficients("gelu")
    for index in (0, 2):
        knob(box, f"a{index}").focus()
        for key in ("Shift+ArrowDown", "ArrowDown"):
            while coefficients(box, "a")[index] > a[index]:
                box.page.keyboard.press(key)
            # one step back, for the smaller steps to come
            if key != "ArrowDown":
                box.page.keyboard.press("Shift+ArrowUp")


def test_a_newcomer_sees_two_handles_and_a_goal(newcomer):
    assert visible_handles(newcomer) == ["a0", "a2"]
    assert goal(newcomer).startswith("Goal: move the points a0 and a2")
    assert newcomer.locator("input").first.is_hidden()
    assert number(newcomer, "score") == 0


def test_two_points_pulled_down_reach_the_goal(newcomer):
    pull_to_gelu(newcomer)
    assert number(newcomer, "error") < 0.05
    assert goal(newcomer).startswith("✓ The curve follows GELU")


def test_the_button_shows_all_ten_and_hides_them_again(newcomer):
    button = newcomer.locator('[data-key="more"]')
    button.click()
    assert len(visible_handles(newcomer)) == 11
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert visible_handles(newcomer) == ["a0", "a2"]


def test_the_figure_that_is_opened_explains_its_words(newcomer):
    newcomer.locator('[data-key="more"]').click()
    hints = " ".join(newcomer.locator(".hint:visible").all_text_contents())
    assert "at x = 0, 1, −1, 2, −2, 3 in this order" in hints
    assert "The gain is" in hints and "A pole is" in hints


def test_the_key_r_goes_back_to_the_start(newcomer):
    before = curve(newcomer, "blue")
    pull_to_gelu(newcomer)
    newcomer.page.keyboard.press("r")
    newcomer.page.wait_for_timeout(60)
    assert curve(newcomer, "blue") == before


def test_the_start_page_greets_with_two_handles(open_page):
    box = figure(open_page(START, **PHONE))
    assert visible_handles(box) == ["a0", "a2"]
    assert box.page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- chapter 10: the reduction

# KAT-T's second function; a small tensor; one whose rows are longer than a block
SIZES = {
    "KAT-T": dict(rows=128 * 197, groups=8, span=96, itemsize=2),
    "few rows": dict(rows=37, groups=4, span=24, itemsize=4),
    "long rows": dict(rows=5, groups=2, span=1100, itemsize=4),
    "odd rows": dict(rows=61, groups=3, span=7, itemsize=4),
}
SMALL = [name for name in SIZES if name != "KAT-T"]
# a device that even small tensors fill
DEVICE = dict(multiprocessors=4, ladder_threads=1024, kernel_threads=512)
TYPES = {2: torch.bfloat16, 4: torch.float32}
KERNEL = "rational.cu"


class Launches:
    """Records launches in the place of `jit.Module`, and runs nothing."""

    def __init__(self, multiprocessors: int, threads: int):
        self.multiprocessors = multiprocessors
        self.resident = threads
        self.grids: dict[str, tuple[tuple[int, int], int]] = {}

    def threads(self, name: str) -> int:
        return self.resident

    def launch(self, name, grid, block, layout, *arguments) -> None:
        self.grids[name] = grid, block


def ones(rows: int, groups: int, span: int, itemsize: int) -> tuple[torch.Tensor, ...]:
    """g, x, a and b for which every term of every sum is 1."""
    x = torch.ones(rows, groups, span, dtype=TYPES[itemsize])
    a = torch.tensor([1.0, 0, 0, 0, 0, 0]).repeat(groups, 1)
    return torch.ones_like(x), x, a, torch.zeros(groups, 4)


def backward(stage: str, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The sums for a0, (groups,)."""
    if stage == KERNEL:
        _, da, _ = katlib.cuda.backward(*tensors, tensors[1].shape)
    else:
        _, da, _ = ladder.backward(stage, *tensors)
    return da[:, 0]


def planned(stage: str, size: dict[str, int], device: dict[str, int]) -> Launches:
    """The launches that katlib plans for this size on this device."""
    threads = device["kernel_threads" if stage == KERNEL else "ladder_threads"]
    launches = Launches(device["multiprocessors"], threads)
    with mock.patch.object(jit, "load", lambda *arguments: launches):
        backward(stage, ones(**size))
    return launches


def run_emulated(stage: str, size: dict[str, int]) -> tuple[torch.Tensor, list[float], dict]:
    """The real kernels on the emulator: the sums for a0, the blocks' partial sums, the atomics."""
    partial = []
    threads = DEVICE["kernel_threads" if stage == KERNEL else "ladder_threads"]
    launch = Emulated.launch

    def keep(self, name, grid, block, layout, *arguments):
        launch(self, name, grid, block, layout, *arguments)
        if "backward" in name:
            partial.extend(arguments[5][0, 0].tolist() if arguments[5].ndim == 3 else [])

    with (
        emulation(DEVICE["multiprocessors"], threads, ordered=False) as launched,
        mock.patch.object(Emulated, "launch", keep),
    ):
        sums = backward(stage, ones(**size))
    return sums, partial, launched.atomics


def go_to_the_end(box) -> None:
    knob(box, "step").focus()
    for _ in range(16):
        box.page.keyboard.press("ArrowRight")
    box.page.wait_for_timeout(60)


def steps_of(box) -> list[dict[str, float]]:
    """The numbers of each step, from the first to the last."""
    following = box.get_by_role("button", name="next ›")
    found = []
    while True:
        found.append({key: number(box, key) for key in ("left", "additions", "chain")})
        text = box.locator('output[data-key="additions"]').text_content()
        found[-1]["atomic"] = "global" if "global" in text else "shared" if "shared" in text else ""
        if following.is_disabled():
            return found
        following.click()


@pytest.mark.parametrize("stage", [*ladder.STAGES, KERNEL])
@pytest.mark.parametrize("name", SIZES)
def test_blocks_and_threads_are_those_that_katlib_launches(show_figure, name, stage):
    device = DEVICE if name in SMALL else {}
    box = show_figure(katlib.ReductionExplorer(**SIZES[name], stage=stage, **device))
    default = dict(multiprocessors=132, ladder_threads=1280, kernel_threads=1024)
    launches = planned(stage, SIZES[name], device or default)
    (_, parts), block = launches.grids["rational_backward" if stage == KERNEL else "backward"]
    assert number(box, "blocks") == parts
    said = box.locator('output[data-key="blocks"]').text_content()
    assert said == f"{parts:,}, of {block} threads"


@pytest.mark.parametrize("stage", ["stage5_two_stages", "stage6_packs", KERNEL])
@pytest.mark.parametrize("name", SMALL)
def test_each_block_adds_the_elements_that_the_real_kernel_adds(show_figure, name, stage):
    sums, partial, _ = run_emulated(stage, SIZES[name])
    box = show_figure(katlib.ReductionExplorer(**SIZES[name], stage=stage, **DEVICE))
    found = []
    for part in range(len(partial)):
        box.get_by_label("block", exact=True).fill(str(part))
        found.append(number(box, "elements"))
    assert found == partial
    go_to_the_end(box)
    who = box.locator('[data-key="who"]').text_content()
    assert f"its sum now has {int(sums[0]):,} elements" in who


@pytest.mark.parametrize("stage", [*ladder.STAGES, KERNEL])
@pytest.mark.parametrize("name", SMALL)
def test_the_atomic_additions_are_those_of_the_real_kernel(show_figure, name, stage):
    _, _, atomics = run_emulated(stage, SIZES[name])
    box = show_figure(katlib.ReductionExplorer(**SIZES[name], stage=stage, **DEVICE))
    steps = steps_of(box)
    sums = 10 * SIZES[name]["groups"]
    for memory in ("global", "shared"):
        shown = sum(step["additions"] for step in steps if step["atomic"] == memory)
        assert shown * sums == atomics[memory]


@pytest.mark.parametrize("stage", [*ladder.STAGES, KERNEL])
def test_a_reduction_ends_with_one_sum(show_figure, stage):
    box = show_figure(katlib.ReductionExplorer(stage=stage))
    left = [step["left"] for step in steps_of(box)]
    assert left[0] == 128 * 197 * 96
    assert left == sorted(left, reverse=True)
    assert left[-1] == 1


def test_a_thread_of_the_kernel_empties_its_register_as_often_as_the_source_says(show_figure):
    source = katlib.cuda.SOURCE.read_text()
    assert "constexpr int FLUSH = WIDTH > 4 ? 8 : 32 / WIDTH;" in source
    box = show_figure(katlib.ReductionExplorer(stage=KERNEL, itemsize=4, step=1))
    said = box.locator('[role="status"]').text_content()
    assert "4 elements for each load. After 8 loads it empties its register" in said
    # 25,216 rows of 24 packs for 660 blocks of 24 threads: 39 packs, 8 at a time
    assert number(box, "chain") == 8 * 4 + math.ceil(39 / 8)


def test_the_longest_chain_shrinks_from_stage_to_stage(show_figure):
    box = show_figure(katlib.ReductionExplorer())
    chains = []
    for stage in ("stage1_global_atomics", "stage3_registers", "stage5_two_stages", KERNEL):
        box.locator(f'button[data-stage="{stage}"]').click()
        go_to_the_end(box)
        chains.append(number(box, "chain"))
    assert chains == sorted(chains, reverse=True)
    assert chains[0] == 128 * 197 * 96
    assert chains[-1] < 100


def test_a_click_on_a_thread_says_what_it_does(show_figure):
    box = show_figure(katlib.ReductionExplorer(step=2))
    box.locator("rect.thread").nth(37).click()
    who = box.locator('[data-key="who"]')
    box.page.wait_for_timeout(60)
    assert who.text_content().startswith("Thread 37 (warp 1, lane 5) adds 2 sums")
    box.get_by_label("thread", exact=True).fill("53")
    box.page.wait_for_timeout(60)
    assert who.text_content() == "Thread 53 (warp 1, lane 21) is read by thread 37."


def test_the_step_follows_the_handle_and_the_key_r_resets_it(show_figure):
    box = show_figure(katlib.ReductionExplorer())
    drag(box.page, knob(box, "step"), 200, 0)
    box.page.wait_for_timeout(60)
    assert int(float(knob(box, "step").get_attribute("aria-valuenow"))) > 2
    box.page.keyboard.press("r")
    box.page.wait_for_timeout(60)
    assert float(knob(box, "step").get_attribute("aria-valuenow")) == 0


def test_the_reduction_fits_a_phone(show_figure):
    box = show_figure(katlib.ReductionExplorer(step=3), **PHONE)
    assert box.page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- chapter 9: the roofline


def typed(box, label: str):
    """A number field."""
    return box.locator(f'input[aria-label="{label}"]')


def assert_bounds_are_katlibs(box) -> str:
    """The numbers of the figure are those of `katlib.book.cost`; returns the limit that binds."""
    # the figure draws once a frame
    box.page.wait_for_timeout(60)
    chip = cost.CHIPS[box.locator('button[data-chip][aria-pressed="true"]').text_content()]
    exact = [
        float(typed(box, label).get_attribute("data-value"))
        for label in ("bytes", "instructions", "share that is float32 arithmetic")
    ]
    moved, instructions, arithmetic = exact[0], exact[1], exact[1] * exact[2]
    kernel = cost.Kernel("", "forward", 0, moved, 0, instructions, arithmetic)
    seconds = cost.step_seconds(cost.Step((kernel,), 0, 1, 0), chip.machine())
    load = chip.load(instructions, arithmetic, moved)
    assert number(box, "rate") == pytest.approx(1 / seconds, rel=1e-9)
    assert number(box, "load") == pytest.approx(load, rel=1e-9)
    assert number(box, "room") == pytest.approx(chip.room(moved), rel=1e-9)
    limit = box.locator('output[data-key="limit"]').get_attribute("data-value")
    assert (limit == "memory") == (load <= 1)
    return limit


@pytest.fixture
def roofline(show_figure):
    return show_figure(katlib.RooflineExplorer())


@pytest.mark.parametrize("chip", cost.CHIPS)
def test_the_bounds_of_each_gpu_are_katlibs(roofline, chip):
    roofline.locator(f'button[data-chip="{chip}"]').click()
    for kernel in roofline.locator("button[data-kernel]").all():
        kernel.click()
        assert_bounds_are_katlibs(roofline)


@pytest.mark.parametrize("m, n", [(5, 4), (8, 8)])
@pytest.mark.parametrize("name, bytes", [("forward", 4), ("backward", 6)])
def test_the_kernels_are_those_that_katlib_counts(roofline, m, n, name, bytes):
    roofline.locator(f'button[data-kernel="{name} ({m}, {n})"]').click()
    instructions, arithmetic = cost.rational_instructions(m, n, name == "backward")
    roofline.page.wait_for_timeout(60)
    assert typed(roofline, "bytes").get_attribute("data-value") == str(bytes)
    shown = float(typed(roofline, "instructions").get_attribute("data-value"))
    assert shown == instructions
    share = typed(roofline, "share that is float32 arithmetic")
    assert float(share.get_attribute("data-value")) == pytest.approx(arithmetic / instructions)


def test_dragging_the_kernel_up_makes_instructions_bind(roofline):
    assert assert_bounds_are_katlibs(roofline) == "memory"
    drag(roofline.page, knob(roofline, "kernel"), 0, -80)
    assert assert_bounds_are_katlibs(roofline) == "issue"
    drag(roofline.page, knob(roofline, "kernel"), 150, 0)
    assert assert_bounds_are_katlibs(roofline) == "memory"


def test_arrow_keys_move_the_kernel_both_ways(roofline):
    knob(roofline, "kernel").focus()
    roofline.page.keyboard.press("ArrowRight")
    roofline.page.keyboard.press("Shift+ArrowUp")
    roofline.page.wait_for_timeout(60)
    assert typed(roofline, "bytes").get_attribute("data-value") == "6.25"
    assert typed(roofline, "instructions").get_attribute("data-value") == "55.125"
    said = knob(roofline, "kernel").get_attribute("aria-valuetext")
    assert said == "6.25 bytes and 55.13 instructions an element: memory binds"


def test_the_t4_has_fewer_units_for_float32_than_it_issues(roofline):
    roofline.locator('button[data-chip="T4"]').click()
    typed(roofline, "instructions").fill("110")
    assert assert_bounds_are_katlibs(roofline) == "arithmetic"


def test_the_key_r_resets_the_kernel_and_the_gpu(roofline):
    roofline.locator('button[data-chip="B200"]').click()
    assert assert_bounds_are_katlibs(roofline) == "issue"
    roofline.page.keyboard.press("r")
    assert assert_bounds_are_katlibs(roofline) == "memory"


def test_the_roofline_fits_a_phone(show_figure):
    box = show_figure(katlib.RooflineExplorer("B200"), **PHONE)
    assert box.page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- chapter 11: the block


@pytest.fixture
def anatomy(show_figure):
    return show_figure(katlib.BlockExplorer())


def block_of(kind: str) -> katlib.vit.Block:
    model = katlib.VisionTransformer(embed_dim=192, num_heads=3, depth=1, mlp=kind)
    return model.eval().blocks[0]


def shapes_by_hooks(block: katlib.vit.Block) -> dict[str, tuple[torch.Size, torch.Size]]:
    """What goes into each module of a block and comes out of it."""
    found = {}

    def hook(name):
        def note(module, inputs, output):
            found[name] = inputs[0].shape, output.shape

        return note

    for name, module in block.named_modules():
        module.register_forward_hook(hook(name))
    with torch.no_grad():
        block(torch.zeros(1, 197, 192))
    return found


def choose_part(box, name: str) -> None:
    box.locator(f'button[data-part="{name}"]').click()
    box.page.wait_for_timeout(60)


def said(box, key: str) -> str:
    return box.locator(f'output[data-key="{key}"]').text_content()


def dimensions(shape: torch.Size) -> str:
    return " × ".join(map(str, shape))


def names_of(box) -> list[str]:
    return [part.get_attribute("data-part") for part in box.locator("button.part").all()]


@pytest.mark.parametrize("kind", ["grkan", "mlp"])
def test_the_shapes_and_parameters_are_those_of_katlibs_modules(anatomy, kind):
    anatomy.locator(f'button[data-kind="{kind}"]').click()
    anatomy.page.wait_for_timeout(60)
    block = block_of(kind)
    modules, found = dict(block.named_modules()), shapes_by_hooks(block)
    shown = [name for name in names_of(anatomy) if name in modules]
    for name in shown:
        choose_part(anatomy, name)
        assert (said(anatomy, "input"), said(anatomy, "output")) == tuple(
            map(dimensions, found[name])
        )
        count = sum(p.numel() for p in modules[name].parameters())
        assert number(anatomy, "parameters") == count
    assert len(shown) == {"grkan": 8, "mlp": 7}[kind]


@pytest.mark.parametrize("kind", ["grkan", "mlp"])
def test_the_parts_have_all_parameters_of_the_block(anatomy, kind):
    anatomy.locator(f'button[data-kind="{kind}"]').click()
    block = block_of(kind)
    assert number(anatomy, "total") == sum(p.numel() for p in block.parameters())
    functions = [m for m in block.modules() if isinstance(m, katlib.GroupRational)]
    learned = sum(p.numel() for function in functions for p in function.parameters())
    assert number(anatomy, "functions") == learned


CALLS = {
    "norm1": (katlib.vit.Block, "self.norm1("),
    "attn.qkv": (katlib.vit.Attention, "self.qkv("),
    "attn.softmax": (katlib.vit.Attention, "attention("),
    "attn.proj": (katlib.vit.Attention, "self.proj("),
    "+ attention": (katlib.vit.Block, "x + self.drop_path(self.attn("),
    "mlp.act1": (katlib.GRKANMlp, "self.act1("),
    "mlp.fc2": (katlib.GRKANMlp, "self.fc2("),
    "+ mlp": (katlib.vit.Block, "x + self.drop_path(self.mlp("),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_code_is_katlibs_and_the_marked_line_calls_the_part(anatomy, name):
    choose_part(anatomy, name)
    caller, call = CALLS[name]
    exact = textwrap.dedent(inspect.getsource(caller.forward)).rstrip()
    code = anatomy.locator(".detail pre").first
    assert code.text_content().rstrip() == exact
    assert call in code.locator("mark").text_content()


def test_a_learned_function_shows_its_own_code_too(anatomy):
    choose_part(anatomy, "mlp.act2")
    own = anatomy.locator(".detail pre").nth(1).text_content().rstrip()
    exact = inspect.getsource(reference.evaluate)
    start, end = own.split("\n", 1)
    assert exact.startswith(start) and exact.rstrip().endswith(end)
    assert end.startswith("    groups = x.shape[1]")


def test_the_vit_has_gelu_where_the_kat_has_its_second_function(anatomy):
    choose_part(anatomy, "mlp.act2")
    anatomy.locator('button[data-kind="mlp"]').click()
    anatomy.page.wait_for_timeout(60)
    chosen = anatomy.locator('button.part[aria-pressed="true"]')
    assert chosen.get_attribute("data-part") == "mlp.act"
    assert "GELU" in anatomy.locator(".detail").text_content()


def test_the_block_is_used_by_keyboard_and_the_key_r_resets_it(anatomy):
    anatomy.locator('button[data-part="mlp.fc1"]').focus()
    anatomy.page.keyboard.press("Enter")
    anatomy.page.wait_for_timeout(60)
    assert said(anatomy, "output") == "1 × 197 × 768"
    anatomy.page.keyboard.press("r")
    anatomy.page.wait_for_timeout(60)
    assert said(anatomy, "output") == "1 × 197 × 192"


def test_the_block_fits_a_phone(show_figure):
    box = show_figure(katlib.BlockExplorer(), **PHONE)
    assert box.page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- light and dark, and damaged states


@pytest.mark.parametrize(
    "make", [katlib.ReductionExplorer, katlib.RooflineExplorer, katlib.BlockExplorer]
)
def test_a_dark_page_has_a_dark_figure(show_figure, make):
    box = show_figure(make(), theme="dark")
    found = box.evaluate(
        "node => [getComputedStyle(node).backgroundColor, getComputedStyle(node).color]"
    )
    assert found == ["rgb(24, 27, 32)", "rgb(234, 234, 234)"]


class Damaged:
    """A figure whose stored state has been changed."""

    def __init__(self, widget, **changes):
        self.state = widget.get_state() | changes

    def get_state(self) -> dict:
        return self.state


@pytest.mark.parametrize(
    "make, damage",
    [
        (katlib.RationalExplorer, {"handles": "a0"}),
        (katlib.ReductionExplorer, {"stage": "stage 5"}),
        (katlib.ReductionExplorer, {"rows": 0}),
        (katlib.ReductionExplorer, {"stages": [["stage1_global_atomics"]]}),
        (katlib.RooflineExplorer, {"chips": []}),
        (katlib.RooflineExplorer, {"share": None}),
        (katlib.BlockExplorer, {"blocks": {}}),
        (katlib.BlockExplorer, {"sources": {"katlib.vit.Block.forward": 1}}),
        (katlib.BlockExplorer, {"part": "mlp.act3"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else next(iter(value)),
)
def test_a_figure_whose_state_is_damaged_says_so(show_figure, make, damage):
    said = show_figure(Damaged(make(), **damage)).text_content()
    assert "This live figure cannot be drawn, because what is stored of it is damaged" in said
    assert next(iter(damage)) in said
