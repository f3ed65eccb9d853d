"""The CUDA backend on a real device. Everything here needs one; tests/test_emulator.py and tests/test_sass.py are what can be checked without.

    python -m pytest -m gpu tests

NVIDIA's compute-sanitizer, with an allocation of its own for each tensor so that it sees where one ends:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck  --error-exitcode 1 python -m pytest -m gpu tests/test_gpu.py -k "hostile or ladder"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck --error-exitcode 1 python -m pytest -m gpu tests/test_gpu.py -k "hostile or ladder"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool initcheck --error-exitcode 1 python -m pytest -m gpu tests/test_gpu.py -k "hostile or ladder"
"""

import threading
import time

import pytest
import torch
from emulator import same_bits
from oracle import DTYPES, data, errors, with_zeros

import katlib
import katlib.cuda
from katlib.cuda import jit, ladder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LIMIT = 16  # rounding errors in units of the absolute terms; the approximate reciprocal has one more than the emulator's


def on(device, *tensors):
    return tuple(t.to(device) for t in tensors)


def run(g, x, a, b):
    return katlib.cuda.forward(x, a, b), *katlib.cuda.backward(g, x, a, b)


def check(*tensors, limit=LIMIT):
    worst = errors(run(*tensors), *tensors)
    assert max(worst.values()) < limit, worst
    return worst


def test_available():
    assert katlib.cuda.available()


def test_compiles_in_two_seconds():
    start = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    jit.compile(
        katlib.cuda.SOURCE,
        dict(
            katlib.cuda.definitions(*data(1, 1, 8, dtype=torch.bfloat16)[1:], width=8, wide=False)
        ),
        10 * major + minor,
    )
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, groups, span",
    [
        (255, 8, 24),
        (256, 3, 24),
        (257, 1, 24),
        (3000, 8, 96),
        (5000, 8, 384),
        (40, 51, 7),
        (1, 1, 1),
        (3, 2, 1),
        (1, 3000, 1),
        (100_003, 8, 7),
        (5, 2, 4096),
        (2, 3, 4104),
        (1, 1, 200_000),
        (16, 8, 8 * 56 * 56),
        (1, 1, 3_000_001),
    ],
)
def test_every_type_and_hostile_shapes(dtype, rows, groups, span):
    check(*on("cuda", *data(rows, groups, span, dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("a_share, b_share", [(8, 1), (1, 8), (2, 4), (8, 8)])
def test_hostile_shares(dtype, a_share, b_share):
    for shape in ((257, 8, 24), (40, 64, 7), (2, 8, 1001), (5000, 8, 384)):
        check(*on("cuda", *data(*shape, dtype=dtype, a_share=a_share, b_share=b_share)))


@pytest.mark.parametrize("m, n", [(0, 0), (0, 4), (5, 0), (1, 1), (3, 2), (7, 6), (8, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_degrees(dtype, m, n):
    check(*on("cuda", *data(133, 3, 24, m, n, dtype)))


def test_hostile_zeros():
    check(*on("cuda", *with_zeros(*data(64, 4, 24))))


@pytest.mark.parametrize("offset", range(1, 8))
def test_hostile_addresses(offset):
    g, x, a, b = on("cuda", *data(40, 2, 16, dtype=torch.bfloat16))
    shifted = (
        torch.empty(x.numel() + offset, dtype=x.dtype, device="cuda")[offset:].view_as(x).copy_(x)
    )
    check(g, shifted, a, b)
    check(shifted, x, a, b)


@pytest.mark.parametrize("shape", [(0, 3, 7), (4, 3, 0)], ids=str)
def test_empty(shape):
    y, dx, da, db = run(*on("cuda", *data(*shape)))
    assert y.shape == dx.shape == shape and not da.any() and not db.any()


def test_64_bit_offsets(monkeypatch):
    monkeypatch.setattr(katlib.cuda, "WIDE", 1)
    for shape in ((257, 8, 24), (40, 51, 7), (2, 3, 4104)):
        check(*on("cuda", *data(*shape)))


def test_huge_inputs_stay_finite():
    for dtype, largest in ((torch.float16, 65504.0), (torch.float32, 1e6)):
        for m, n in ((5, 4), (8, 8)):
            g, x, a, b = data(16, 2, 8, m, n, dtype)
            a[:, n + 1 :] = 0
            assert all(t.isfinite().all() for t in run(*on("cuda", g, x.sign() * largest, a, b)))


def test_coefficient_gradients_of_25_million_elements():
    """The goal: an error of 1e-6 of the sum of the absolute terms. Random terms come nowhere near; equal ones are the worst case."""
    g, x, a, b = on("cuda", *data(16_276, 8, 192))  # 25 million
    worst = check(g, x, a, b)
    assert max(worst["da"], worst["db"]) * torch.finfo(torch.float32).eps < 1e-6
    worst = check(
        g[:1, :1, :1].expand_as(x).contiguous(), x[:1, :1, :1].expand_as(x).contiguous(), a, b
    )
    assert max(worst["da"], worst["db"]) * torch.finfo(torch.float32).eps < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_hundred_runs_give_the_same_bits(dtype):
    tensors = on("cuda", *data(20_000, 8, 24, dtype=dtype))
    first = run(*tensors)
    busy = torch.randn(2000, 2000, device="cuda")
    for i in range(100):
        with torch.cuda.stream(
            torch.cuda.Stream()
        ):  # something else on the device, so that blocks come in another order
            busy @ busy
        assert all(same_bits(one, other) for one, other in zip(run(*tensors), first)), (
            f"run {i} differs"
        )


def test_a_cuda_graph_replays():
    g, x, a, b = on("cuda", *data(3000, 8, 24, dtype=torch.bfloat16))
    run(g, x, a, b)  # compiles, and loads the kernel
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(g, x, a, b)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        a.copy_(torch.randn_like(a))
        graph.replay()
        assert all(
            same_bits(replayed, direct) for replayed, direct in zip(results, run(g, x, a, b))
        )


def test_the_current_stream_is_used():
    """The kernel waits for what its own stream does before it, here a second of sleep and then the copy of its input."""
    g, x, a, b = on("cuda", *data(3000, 8, 24))
    expected = run(g, x, a, b)
    torch.cuda.synchronize()
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)
        late.copy_(x)
        results = run(g, late, a, b)
    stream.synchronize()
    assert all(same_bits(one, other) for one, other in zip(results, expected))


def test_a_thread_that_never_used_cuda():
    tensors, results = on("cuda", *data(300, 8, 24)), []
    thread = threading.Thread(target=lambda: results.append(run(*tensors)))
    thread.start()
    thread.join()
    assert results and max(errors(results[0], *tensors).values()) < LIMIT


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_another_device_than_the_current_one():
    assert torch.cuda.current_device() == 0
    check(*on("cuda:1", *data(300, 8, 24)))
    check(*on("cuda:0", *data(300, 8, 24)))


def test_more_than_2_to_the_31_elements():
    """Over 2^31 elements, and over 2^29 packs, in bfloat16 of a span that allows one element in a load only."""
    rows, groups, span = 2**31 // 49 + 3, 7, 7
    if torch.cuda.mem_get_info()[0] < 6 * 2 * rows * groups * span:
        pytest.skip("needs 26 GB of GPU memory")
    _, _, a, b = on("cuda", *data(1, groups, span))
    x = torch.randn(rows, groups, span, device="cuda", dtype=torch.bfloat16)
    g = torch.ones_like(x)
    y, dx, da, db = run(g, x, a, b)
    sums = [torch.zeros_like(t, dtype=torch.float64) for t in (da, db)]
    step = rows // 16 + 1
    for start in range(0, rows, step):
        part = slice(start, start + step)
        results = run(g[part], x[part], a, b)
        torch.testing.assert_close((y[part], dx[part]), results[:2])
        for total, one in zip(sums, results[2:]):
            total += one
    for total, got in zip(sums, (da, db)):
        assert (got - total).abs().max() < 1e-5 * total.abs().max() + 1e-7 * x.numel()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("stage", ladder.STAGES)
def test_ladder(stage, dtype):
    for shape in ((1, 1, 1), (257, 3, 24), (40, 51, 7), (2, 3, 1001), (5000, 8, 24)):
        g, x, a, b = on("cuda", *data(*shape, dtype=dtype))
        worst = errors((ladder.forward(x, a, b), *ladder.backward(stage, g, x, a, b)), g, x, a, b)
        assert max(worst.values()) < 512, (
            worst
        )  # atomics: the 40,000 terms of one sum, one after the other


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operator(dtype):
    """What users call: `katlib.rational` on CUDA tensors, other layouts and strides included, against the oracle on the CPU."""
    real = torch.promote_types(dtype, torch.float32)
    a, b = (
        torch.randn(1, 6, dtype=real, device="cuda", requires_grad=True),
        torch.randn(4, 4, dtype=real, device="cuda", requires_grad=True),
    )
    for shape, dim in (((5, 7, 96), -1), ((3, 8, 14, 14), 1), ((96,), 0)):
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
        for layout in (x, x.mT.contiguous().mT if x.ndim > 1 else x[:]):
            inputs = layout.cuda().requires_grad_(), a, b
            y = katlib.rational(*inputs, dim=dim)
            got = y, *torch.autograd.grad(y.float().sum(), inputs)  # a gradient of stride 0
            wide = tuple(t.detach().cpu().double().requires_grad_() for t in inputs)
            expected = katlib.rational_reference(*wide, dim=dim)
            for one, other in zip(got, (expected, *torch.autograd.grad(expected.sum(), wide))):
                tolerance = 32 * torch.finfo(one.dtype).eps
                torch.testing.assert_close(
                    one.cpu().double(),
                    other,
                    rtol=tolerance,
                    atol=tolerance * other.abs().max().item(),
                )


def test_gradcheck():
    x, a, b = (
        torch.randn(shape, dtype=torch.float64, device="cuda", requires_grad=True)
        for shape in ((3, 12), (2, 6), (3, 4))
    )
    assert torch.autograd.gradcheck(katlib.rational, (x, a, b))
    assert torch.autograd.gradgradcheck(katlib.rational, (x, a, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    g, x, a, b = on("cuda", *data(3, 4, 5, dtype=dtype))
    torch.library.opcheck(
        torch.ops.katlib.rational.default, tuple(t.requires_grad_() for t in (x, a, b))
    )
    torch.library.opcheck(
        torch.ops.katlib.rational_backward.default,
        (g, *(t.detach().requires_grad_() for t in (x, a, b))),
    )
