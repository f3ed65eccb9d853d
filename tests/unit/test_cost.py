"""The model of cost: its counts against real steps of real models, its times by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import katlib
from katlib.book.cost import (
    BUCKET,
    CHIPS,
    Kernel,
    Machine,
    Step,
    count_step,
    fused_attention,
    parallel_seconds,
    rational_instructions,
    reduce_seconds,
    step_seconds,
)
from katlib.cuda import jit, sass

try:
    jit.nvrtc()
    missing = "" if sass.cuobjdump() else "cuobjdump (in the triton wheel) was not found"
except OSError as error:
    missing = str(error)
needs_the_tools = pytest.mark.skipif(bool(missing), reason=missing or "-")

SMALL = dict(img_size=32, patch_size=4, embed_dim=64, depth=3, num_heads=2, num_classes=10)
BATCH = 16
TOKENS = 65
FLOAT32 = 4  # bytes

both_models = pytest.mark.parametrize("mlp", ["grkan", "mlp"])
both_precisions = pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])


def build(mlp: str) -> Callable[[], nn.Module]:
    return lambda: katlib.VisionTransformer(**SMALL, mlp=mlp)


def count(mlp: str, half: bool = False) -> Step:
    return count_step(build(mlp), BATCH, 32, half)


class RealStep:
    """A step that is run, on tensors that have numbers."""

    def __init__(self, mlp: str, half: bool = False):
        self.model = build(mlp)()
        self.half = half
        self.images = torch.randn(BATCH, 3, 32, 32)
        self.labels = torch.randint(0, 10, (BATCH,))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        # from the second step on, the optimizer has its moments
        self.run()

    def loss(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half), fused_attention():
            logits = self.model(self.images)
        return F.cross_entropy(logits.float(), self.labels)

    def run(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


# ---- FLOPs


def flops_by_pytorch(mlp: str) -> dict[str, int]:
    """The FLOPs of a real step by operator, as PyTorch counts them."""
    step = RealStep(mlp)
    with FlopCounterMode(display=False) as counter:
        step.run()
    counts = counter.get_flop_counts()["Global"]
    return {str(op).replace(".", "::"): flops for op, flops in counts.items()}


@both_models
def test_the_flops_of_matrix_products_are_those_that_pytorch_counts(mlp):
    expected = flops_by_pytorch(mlp)
    # from some version after 2.11 on, PyTorch's count includes attention on a CPU
    ours = dict.fromkeys(expected, 0)
    for kernel in count(mlp).kernels:
        if kernel.name in ours:
            ours[kernel.name] += kernel.flops
    assert ours == expected


@both_models
def test_pytorch_counts_the_products_that_we_compare(mlp):
    expected = flops_by_pytorch(mlp)
    assert all(expected.values())
    products = {"aten::mm", "aten::addmm", "aten::convolution", "aten::convolution_backward"}
    assert products <= set(expected)


@pytest.mark.parametrize(
    "name, flops, tensors", [("rational", 21, 2), ("rational_backward", 63, 3)]
)
def test_the_rational_function_is_one_pass_each_way(name, flops, tensors):
    kernels = [kernel for kernel in count("grkan").kernels if kernel.name == f"katlib::{name}"]
    # two functions a block: before fc1, and before fc2, which is four times as wide
    elements = BATCH * TOKENS * SMALL["embed_dim"] * (1 + 4) * SMALL["depth"]
    assert len(kernels) == 2 * SMALL["depth"]
    assert sum(kernel.flops for kernel in kernels) == flops * elements
    moved = sum(kernel.bytes for kernel in kernels)
    assert moved == pytest.approx(FLOAT32 * tensors * elements, rel=0.01)


# ---- memory


@both_precisions
@both_models
def test_what_forward_keeps_is_what_autograd_saves(mlp, half):
    step = RealStep(mlp, half)
    inputs = [*step.model.parameters(), step.images]
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss()
    assert loss.requires_grad
    assert count(mlp, half).kept == pytest.approx(sum(saved.values()), rel=0.01)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """In half types a product has a workspace for each thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measured_peak(step: RealStep) -> int:
    """The most bytes that a real step allocates, by PyTorch's profiler."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        step.run()
    allocated = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


@both_models
def test_the_peak_is_that_of_the_allocator(mlp, one_thread):
    measured = measured_peak(RealStep(mlp))
    step = count(mlp)
    assert measured > 2e6
    assert step.peak - step.before == pytest.approx(measured, rel=0.01)


@both_models
def test_the_peak_in_half_is_that_of_the_allocator_but_for_workspaces(mlp, one_thread):
    measured = measured_peak(RealStep(mlp, half=True))
    step = count(mlp, half=True)
    assert measured > 2e6
    # products in half types have a workspace, whose size depends on the processor
    assert 0.75 * measured < step.peak - step.before < 1.01 * measured


@both_precisions
@both_models
def test_before_a_step_there_are_parameters_two_moments_and_the_images(mlp, half):
    step = count(mlp, half)
    images = FLOAT32 * BATCH * 3 * 32 * 32
    assert step.before == pytest.approx(3 * FLOAT32 * step.parameters + images, rel=0.01)


def test_a_kat_keeps_one_tensor_more_a_block_than_a_vit():
    """The output of its first function.

    A ViT keeps the norm's output as the input of fc1, a KAT keeps it for the function.
    """
    one_more = SMALL["depth"] * BATCH * TOKENS * SMALL["embed_dim"] * FLOAT32
    assert count("grkan").kept - count("mlp").kept == pytest.approx(one_more, rel=0.01)


def test_a_kat_has_the_coefficients_of_two_functions_a_block_more_than_a_vit():
    difference = count("grkan").parameters - count("mlp").parameters
    assert difference == SMALL["depth"] * (2 * 6 + 2 * 8 * 4)


@pytest.mark.parametrize("name", ["rational", "rational_backward"])
def test_in_half_both_rational_functions_move_half_the_bytes(name):
    """The first one too: a norm's output is float32, but it is cast before."""

    def moved(step: Step) -> int:
        return sum(kernel.bytes for kernel in step.kernels if kernel.name == f"katlib::{name}")

    whole, half = moved(count("grkan")), moved(count("grkan", half=True))
    assert half == pytest.approx(whole / 2, rel=0.01)


def test_a_step_in_half_keeps_less_and_computes_as_much():
    whole, half = count("grkan"), count("grkan", half=True)
    assert half.kept < 0.75 * whole.kept
    assert half.flops == whole.flops


@both_precisions
def test_the_update_moves_seven_numbers_a_parameter(half):
    """It reads a parameter, its gradient and two moments, and writes all but the gradient."""
    step = count("grkan", half)
    (adamw,) = [kernel for kernel in step.kernels if "adamw" in kernel.name]
    assert adamw.bytes == pytest.approx(7 * FLOAT32 * step.parameters, rel=0.01)


# ---- instructions


@needs_the_tools
@pytest.mark.parametrize("degrees, low", [((3, 2), 0), ((5, 4), 0), ((8, 8), 0.1)])
def test_instructions_are_those_of_the_machine_code(degrees, low):
    """With large degrees the kernel guards against overflow, which the formulas leave out."""
    kernels, _ = sass.measure(torch.bfloat16, 90, degrees)
    for backward in (False, True):
        found = kernels["rational_backward" if backward else "rational_forward"].instructions
        counted, _ = rational_instructions(*degrees, backward)
        assert (1 - low) * found - 0.2 < counted < found + 0.2


@needs_the_tools
@pytest.mark.parametrize("dtype, arch", [(torch.float16, 75), (torch.bfloat16, 80)], ids=str)
def test_other_chips_need_about_as_many_instructions(dtype, arch):
    kernels, _ = sass.measure(dtype, arch)
    for backward in (False, True):
        found = kernels["rational_backward" if backward else "rational_forward"].instructions
        assert rational_instructions(5, 4, backward)[0] == pytest.approx(found, rel=0.06)


def test_a_step_counts_the_instructions_of_the_rational_function_alone():
    elements = BATCH * TOKENS * SMALL["embed_dim"] * (1 + 4) * SMALL["depth"]
    counted = {"katlib::rational": 0.0, "katlib::rational_backward": 0.0}
    for kernel in count("grkan").kernels:
        if kernel.instructions:
            counted[kernel.name] += kernel.instructions
    assert counted["katlib::rational"] == pytest.approx(14.75 * elements)
    assert counted["katlib::rational_backward"] == pytest.approx(45.125 * elements)


def test_a_vit_has_no_instructions_that_are_counted():
    assert not any(kernel.instructions for kernel in count("mlp").kernels)


# ---- chips


@pytest.mark.parametrize(
    "name, teraflops", [("T4", 8.1), ("A100", 19.5), ("H100", 67), ("H200", 67), ("B200", 75)]
)
def test_the_float32_peak_of_a_chip_is_that_of_its_data_sheet(name, teraflops):
    assert 2 * CHIPS[name].arithmetic == pytest.approx(1e12 * teraflops, rel=0.01)


def test_the_room_of_an_h100_by_hand():
    """132 multiprocessors, 4 schedulers, 32 threads, 1.98 GHz; 3.35 TB/s."""
    per_byte = 132 * 4 * 32 * 1.98e9 / 3.35e12
    assert CHIPS["H100"].room(4) == pytest.approx(4 * per_byte) == pytest.approx(39.9, abs=0.05)
    assert CHIPS["H100"].room(6) == pytest.approx(59.9, abs=0.05)


def test_the_backward_pass_in_bfloat16_exceeds_the_issue_slots_of_an_h200_but_not_of_an_h100():
    needs = rational_instructions(5, 4, backward=True)
    assert CHIPS["H100"].load(*needs, moved=6) == pytest.approx(0.75, abs=0.01)
    assert CHIPS["H200"].load(*needs, moved=6) == pytest.approx(1.08, abs=0.01)


def test_a_chip_with_few_float32_units_is_limited_by_them():
    chip = CHIPS["A100"]
    assert chip.load(10, 10, moved=1) == 2 * chip.load(10, 5, moved=1) == 2 * chip.load(10, 0, 1)


# ---- seconds

STEP = Step(
    (
        Kernel("product", "forward", flops=1000, bytes=10, alive=0),
        Kernel("copy", "forward", flops=0, bytes=400, alive=0),
        Kernel("product", "backward", flops=2000, bytes=20, alive=0),
        Kernel("add", "update", flops=1, bytes=100, alive=0),
    ),
    parameters=50,
    batch_size=1,
    before=0,
)


def test_a_processor_whose_calls_wait_adds_up_calls_and_kernels():
    machine = Machine(peak=100, bandwidth=10, call=1)
    assert step_seconds(STEP, machine) == 10 + 40 + 20 + 10 + 4


def test_a_phase_has_the_seconds_of_its_own_kernels():
    machine = Machine(peak=100, bandwidth=10, call=1)
    assert step_seconds(STEP, machine, "forward") == 10 + 40 + 2


def test_a_processor_whose_calls_do_not_wait_hides_them_behind_its_kernels():
    machine = Machine(peak=100, bandwidth=10, call=1, waits=False)
    assert step_seconds(STEP, machine) == 80


def test_a_very_fast_processor_is_limited_by_the_calls():
    machine = Machine(peak=1e9, bandwidth=1e9, call=1, waits=False)
    assert step_seconds(STEP, machine) == 4


FUNCTION = Kernel(
    "rational", "forward", flops=1000, bytes=10, alive=0, instructions=600.0, arithmetic=400.0
)
FUNCTION_STEP = Step((FUNCTION,), parameters=1, batch_size=1, before=0)


@pytest.mark.parametrize(
    "rates, seconds",
    [({}, 1), ({"issue": 100}, 6), ({"arithmetic": 50}, 8), ({"issue": 1e9, "arithmetic": 1e9}, 1)],
    ids=["not limited", "by issue", "by float32 units", "by bytes"],
)
def test_a_function_takes_at_least_as_long_as_its_instructions(rates, seconds):
    """The tensor cores' peak says nothing of a function that does not run on them."""
    machine = Machine(peak=1e9, bandwidth=10, call=0, **rates)
    assert step_seconds(FUNCTION_STEP, machine) == seconds


def test_a_kat_takes_longer_on_an_h200_than_its_bytes_alone():
    chip = CHIPS["H200"]
    bytes_alone = Machine(chip.peak, chip.bandwidth, call=0, waits=False)
    step = count("grkan", half=True)
    assert step_seconds(step, chip.machine()) > step_seconds(step, bytes_alone)
    assert step_seconds(count("mlp", half=True), chip.machine()) == step_seconds(
        count("mlp", half=True), bytes_alone
    )


def test_a_share_of_a_chip_reaches_that_share_of_every_rate():
    whole, half = (CHIPS["H100"].machine(share=share) for share in (1.0, 0.5))
    step = count("grkan", half=True)
    assert step_seconds(step, half) == pytest.approx(2 * step_seconds(step, whole))


@pytest.mark.parametrize("processes, seconds", [(1, 0), (2, 10), (1000, 19.98)])
def test_the_seconds_of_a_sum_over_processes(processes, seconds):
    assert reduce_seconds(100, processes, 10) == pytest.approx(seconds)


# 50 s forward, 20 s backward and 10 s update
MACHINE = Machine(peak=100, bandwidth=10, call=0)


def test_a_single_process_has_nothing_to_sum():
    assert parallel_seconds(STEP, MACHINE, 1, link=10) == step_seconds(STEP, MACHINE) == 80


def test_without_overlap_the_whole_sum_is_added():
    assert parallel_seconds(STEP, MACHINE, 2, link=10, overlap=False) == 80 + 20


def test_a_single_bucket_of_gradients_cannot_be_hidden():
    """The 200 bytes of gradients are less than a bucket, and the last bucket comes too late."""
    assert parallel_seconds(STEP, MACHINE, 2, link=10) == 80 + 20


# with four buckets of gradients
LARGE = Step(STEP.kernels, parameters=BUCKET, batch_size=1, before=0)


def test_a_sum_hides_behind_backward_but_for_its_last_bucket():
    """The sum takes 4 s, backward 20 s, the last bucket 1 s."""
    assert parallel_seconds(LARGE, MACHINE, 2, link=BUCKET) == 50 + 20 + 1 + 10


def test_a_sum_that_takes_longer_than_backward_is_not_hidden():
    assert parallel_seconds(LARGE, MACHINE, 2, link=BUCKET / 10) == 50 + 40 + 10
