"""The cost model: its counts against real steps of real models, its times by hand."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import katlib
from katlib.book.cost import (
    BUCKET,
    Kernel,
    Machine,
    Step,
    count_step,
    parallel_seconds,
    reduce_seconds,
    step_seconds,
)

SMALL = dict(img_size=32, patch_size=4, embed_dim=64, depth=3, num_heads=2, num_classes=10)
BATCH = 16
TOKENS = 65


def build(mlp):
    return lambda: katlib.VisionTransformer(**SMALL, mlp=mlp)


def real_step(mlp, half=False):
    model = build(mlp)()
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    run()
    return model, images, labels, run


@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_the_products_are_those_that_run(mlp):
    *_, run = real_step(mlp)
    with FlopCounterMode(display=False) as real:
        run()
    step = count_step(build(mlp), BATCH, 32)
    theirs = {
        str(op).replace(".", "::"): flops for op, flops in real.get_flop_counts()["Global"].items()
    }
    ours = dict.fromkeys(theirs, 0)
    for kernel in step.kernels:
        if kernel.name in ours:
            ours[kernel.name] += kernel.flops
    assert ours == theirs and all(
        theirs.values()
    )  # a CPU's attention is among them from some torch after 2.11 on
    assert {"aten::mm", "aten::addmm", "aten::convolution", "aten::convolution_backward"} <= set(
        theirs
    )


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_what_forward_keeps_is_what_autograd_saves(mlp, half):
    model, images, labels, _ = real_step(mlp)
    own, kept = {p.untyped_storage().data_ptr() for p in [*model.parameters(), images]}, {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
    assert loss.requires_grad
    assert count_step(build(mlp), BATCH, 32, half).kept == pytest.approx(
        sum(kept.values()), rel=0.01
    )


@pytest.fixture
def one_thread():
    """In half types a product has a workspace for each thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_the_peak_is_that_of_the_allocator(mlp, half, one_thread):
    """The profiler sees every allocation of a real step."""
    model, images, _, run = real_step(mlp, half)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    step = count_step(build(mlp), BATCH, 32, half)
    assert most > 2e6
    if half:  # its products have a workspace, as large as the processor needs it
        assert 0.75 * most < step.peak - step.before < 1.01 * most
    else:
        assert step.peak - step.before == pytest.approx(most, rel=0.01)
    assert step.before == pytest.approx(
        3 * 4 * step.parameters + images.nbytes, rel=0.01
    )  # with AdamW's two moments


def test_a_kat_keeps_one_tensor_more_a_block():
    """Its first function's output; the input of fc1 in a ViT is the norm's output, which a KAT keeps for the function."""
    kat, vit = (count_step(build(mlp), BATCH, 32) for mlp in ("grkan", "mlp"))
    assert kat.kept - vit.kept == pytest.approx(
        SMALL["depth"] * BATCH * TOKENS * SMALL["embed_dim"] * 4, rel=0.01
    )
    assert kat.parameters - vit.parameters == SMALL["depth"] * (2 * 6 + 2 * 8 * 4)


def test_the_rational_function_is_one_pass_each_way():
    step = count_step(build("grkan"), BATCH, 32)
    elements = (
        BATCH * TOKENS * SMALL["embed_dim"] * (1 + 4) * SMALL["depth"]
    )  # before fc1 and before fc2
    for name, flops, tensors in (("rational", 21, 2), ("rational_backward", 63, 3)):
        kernels = [k for k in step.kernels if k.name == f"katlib::{name}"]
        assert len(kernels) == 2 * SMALL["depth"]
        assert sum(k.flops for k in kernels) == flops * elements
        assert sum(k.bytes for k in kernels) == pytest.approx(4 * tensors * elements, rel=0.01)


def test_half_moves_and_keeps_less_and_the_update_does_not_change():
    whole, half = (count_step(build("grkan"), BATCH, 32, half=h) for h in (False, True))
    of = {
        h: {
            name: sum(k.bytes for k in s.kernels if k.name == f"katlib::{name}")
            for name in ("rational", "rational_backward")
        }
        for h, s in (("whole", whole), ("half", half))
    }
    for name in of[
        "whole"
    ]:  # the first function too, though a norm's output is float32: it is cast first
        assert of["half"][name] == pytest.approx(of["whole"][name] / 2, rel=0.01)
    assert half.kept < 0.75 * whole.kept and half.flops == whole.flops
    for step in (
        whole,
        half,
    ):  # reads a parameter, its gradient and two moments, and writes all but the gradient
        (adamw,) = [k for k in step.kernels if "adamw" in k.name]
        assert adamw.bytes == pytest.approx(28 * step.parameters, rel=0.01)


STEP = Step(
    (
        Kernel("product", "forward", 1000, 10, 0),
        Kernel("copy", "forward", 0, 400, 0),
        Kernel("product", "backward", 2000, 20, 0),
        Kernel("add", "update", 1, 100, 0),
    ),
    parameters=50,
    batch_size=1,
    before=0,
)


def test_seconds_by_hand():
    machine = Machine(peak=100, bandwidth=10, call=1)
    assert step_seconds(STEP, machine) == 10 + 40 + 20 + 10 + 4
    assert step_seconds(STEP, machine, "forward") == 10 + 40 + 2
    on_a_gpu = Machine(peak=100, bandwidth=10, call=1, waits=False)
    assert step_seconds(STEP, on_a_gpu) == 80
    assert (
        step_seconds(STEP, Machine(peak=1e9, bandwidth=1e9, call=1, waits=False)) == 4
    )  # all that counts is the calls


def test_a_sum_over_processes_by_hand():
    assert reduce_seconds(100, 2, 10) == 10 and reduce_seconds(100, 1, 10) == 0
    assert reduce_seconds(100, 1000, 10) == pytest.approx(19.98)
    machine = Machine(peak=100, bandwidth=10, call=0)  # 50 forward, 20 backward, 10 update
    assert parallel_seconds(STEP, machine, 1, link=10) == step_seconds(STEP, machine) == 80
    assert parallel_seconds(STEP, machine, 2, link=10, overlap=False) == 80 + 20
    assert (
        parallel_seconds(STEP, machine, 2, link=10) == 80 + 20
    )  # 200 bytes: a single bucket, the last one
    large = Step(STEP.kernels, parameters=BUCKET, batch_size=1, before=0)  # four buckets
    assert (
        parallel_seconds(large, machine, 2, link=BUCKET) == 50 + 20 + 1 + 10
    )  # 4 s hide behind 20; the last bucket's 1 s does not
    assert parallel_seconds(large, machine, 2, link=BUCKET / 10) == 50 + 40 + 10  # 40 s do not hide
