"""The CUDA backend on a real device.

    python -m pytest -m gpu tests

Where there is no device, the emulator stands in for one: CPU tensors take the place of CUDA
tensors, and a tensor has fewer rows. So a mistake in these tests shows without a GPU. What only a
device can tell (streams, graphs, threads, time, very large tensors) is left out there.

`python benchmarks/gpu.py C` runs NVIDIA's checkers of memory accesses and of races.
"""

import shutil
import threading
import time

import pytest
import torch
from oracle import (
    DTYPES,
    HUGE_COEFFICIENTS,
    HUGE_DEGREES,
    HUGE_INPUTS,
    data,
    errors,
    huge,
    with_zeros,
)

import katlib
import katlib.cuda
from katlib.cuda import jit, ladder
from katlib.cuda.emulator import emulation, same_bits

HAS_DEVICE = torch.cuda.is_available()
DEVICE = "cuda" if HAS_DEVICE else "cpu"
# on the emulator a tensor loses rows until it has no more elements than this, or one row
EMULATED_ELEMENTS = 20_000

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_DEVICE and not shutil.which("g++"),
        reason="there is no CUDA device, and the emulator needs g++",
    ),
]
needs_device = pytest.mark.skipif(not HAS_DEVICE, reason="only a CUDA device can tell")
# Rounding errors in units of the absolute terms. The approximate reciprocal has one more than the
# emulator's.
LIMIT = 16
EPS = torch.finfo(torch.float32).eps


def in_emulator(function, ordered):
    """A function of the CUDA backend whose kernels the emulator runs."""

    def run(*arguments):
        with emulation(ordered=ordered):
            return function(*arguments)

    return run


def copied(value):
    """Copies of the tensors in a value: their storage is their own, and has no margins."""
    if isinstance(value, tuple):
        return tuple(map(copied, value))
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def on_copies(function):
    """A function whose arguments stay as they are: the emulator writes them anew."""
    return lambda *arguments: copied(function(*copied(arguments)))


@pytest.fixture(autouse=not HAS_DEVICE)
def emulated_device(monkeypatch):
    """CPU tensors in the place of CUDA tensors; `katlib.rational` reaches the backend, too."""
    # atomic additions come in any order
    for module, ordered in ((katlib.cuda, True), (ladder, False)):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, in_emulator(getattr(module, name), ordered))
    for name in ("forward", "backward"):
        monkeypatch.setattr(katlib.cpu, name, on_copies(getattr(katlib.cuda, name)))


def on(device, *tensors):
    return tuple(t.to(device) for t in tensors)


def draw(rows, groups, span, *degrees, **options):
    """`oracle.data` on the device; on the emulator with fewer rows."""
    if not HAS_DEVICE:
        rows = min(rows, max(1, EMULATED_ELEMENTS // max(1, groups * span)))
    return on(DEVICE, *data(rows, groups, span, *degrees, **options))


def run(g, x, a, b, input_gradient=True, coefficient_gradients=True):
    asked = input_gradient, coefficient_gradients
    gradients = katlib.cuda.backward(g, x, a, b, x.shape, *asked)
    return katlib.cuda.forward(x, a, b, x.shape), *gradients


def check(*tensors, asked=(True, True)):
    worst = errors(run(*tensors, *asked), *tensors)
    assert max(worst.values()) < LIMIT, worst
    return worst


def same(results, others):
    return all(same_bits(one, other) for one, other in zip(results, others))


@needs_device
def test_available():
    assert katlib.cuda.available()


@needs_device
def test_compiles_in_two_seconds():
    _, *tensors = data(1, 1, 8, dtype=torch.bfloat16)
    macros = dict(katlib.cuda.definitions(*tensors, width=8, wide=False))
    major, minor = torch.cuda.get_device_capability()
    start = time.perf_counter()
    jit.compile(katlib.cuda.SOURCE, macros, 10 * major + minor)
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
    check(*draw(rows, groups, span, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("a_share, b_share", [(8, 1), (1, 8), (2, 4), (8, 8)])
@pytest.mark.parametrize(
    "shape", [(257, 8, 24), (40, 64, 7), (2, 8, 1001), (5000, 8, 384)], ids=str
)
def test_hostile_shares(dtype, a_share, b_share, shape):
    check(*draw(*shape, dtype=dtype, a_share=a_share, b_share=b_share))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("asked", [(True, False), (False, True)], ids=["input", "coefficients"])
@pytest.mark.parametrize("shape", [(257, 8, 24), (40, 51, 7), (5000, 8, 384)], ids=str)
def test_hostile_shapes_of_one_gradient_alone(dtype, asked, shape):
    check(*draw(*shape, dtype=dtype), asked=asked)


@pytest.mark.parametrize("asked", [(True, False), (False, True)], ids=["input", "coefficients"])
def test_one_gradient_alone_has_the_same_bits(asked):
    tensors = draw(5000, 8, 24, dtype=torch.bfloat16)
    alone, both = run(*tensors, *asked), run(*tensors)
    assert all(one is None or same_bits(one, other) for one, other in zip(alone, both))


def test_channels_last_is_read_as_it_is():
    x, g = torch.randn(2, 16, 8, 14, 14, device=DEVICE)
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    _, _, a, b = draw(1, 2, 1)
    shape = 16 * 14 * 14, 2, 4
    y = katlib.cuda.forward(x, a, b, shape)
    dx, da, db = katlib.cuda.backward(g, x, a, b, shape)
    assert y.stride() == dx.stride() == x.stride()
    flat_g, flat_x, flat_y, flat_dx = (t.permute(0, 2, 3, 1).reshape(shape) for t in (g, x, y, dx))
    worst = errors((flat_y, flat_dx, da, db), flat_g, flat_x, a, b)
    assert max(worst.values()) < LIMIT, worst


@pytest.mark.parametrize("m, n", [(0, 0), (0, 4), (5, 0), (1, 1), (3, 2), (7, 6), (8, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_degrees(dtype, m, n):
    check(*draw(133, 3, 24, m, n, dtype))


def test_hostile_zeros():
    check(*on(DEVICE, *with_zeros(*data(64, 4, 24))))


@pytest.mark.parametrize("offset", range(1, 8))
def test_hostile_addresses(offset):
    g, x, a, b = draw(40, 2, 16, dtype=torch.bfloat16)
    room = torch.empty(x.numel() + offset, dtype=x.dtype, device=DEVICE)
    shifted = room[offset:].view_as(x).copy_(x)
    check(g, shifted, a, b)
    check(shifted, x, a, b)


@pytest.mark.parametrize("shape", [(0, 3, 7), (4, 3, 0)], ids=str)
def test_empty(shape):
    y, dx, da, db = run(*draw(*shape))
    assert y.shape == dx.shape == shape
    assert not da.any() and not db.any()


@pytest.mark.parametrize("shape", [(257, 8, 24), (40, 51, 7), (2, 3, 4104)], ids=str)
def test_64_bit_offsets(monkeypatch, shape):
    monkeypatch.setattr(katlib.cuda, "WIDE", 1)
    check(*draw(*shape))


@pytest.mark.parametrize("coefficients", HUGE_COEFFICIENTS)
@pytest.mark.parametrize("m, n", HUGE_DEGREES)
@pytest.mark.parametrize("dtype, largest", HUGE_INPUTS)
def test_huge_inputs_have_the_right_values_and_gradients(dtype, largest, m, n, coefficients):
    check(*on(DEVICE, *huge(dtype, largest, m, n, coefficients)))


@needs_device
@pytest.mark.parametrize("terms", ["random", "equal"])
def test_coefficient_gradients_of_25_million_elements(terms):
    """The goal: an error of 1e-6 of the sum of the absolute terms.

    Random terms come nowhere near it; equal ones are the worst case.
    """
    g, x, a, b = draw(16_276, 8, 192)
    if terms == "equal":
        g, x = (t[:1, :1, :1].expand_as(t).contiguous() for t in (g, x))
    worst = check(g, x, a, b)
    assert max(worst["da"], worst["db"]) * EPS < 1e-6


@needs_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_hundred_runs_give_the_same_bits(dtype):
    tensors = draw(20_000, 8, 24, dtype=dtype)
    first = run(*tensors)
    busy = torch.randn(2000, 2000, device=DEVICE)
    for i in range(100):
        # something else on the device, so that blocks run in another order
        with torch.cuda.stream(torch.cuda.Stream()):
            busy @ busy
        assert same(run(*tensors), first), f"run {i} differs"


@needs_device
def test_a_cuda_graph_replays():
    g, x, a, b = draw(3000, 8, 24, dtype=torch.bfloat16)
    # this compiles and loads the kernel
    run(g, x, a, b)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(g, x, a, b)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        a.copy_(torch.randn_like(a))
        graph.replay()
        assert same(results, run(g, x, a, b))


@needs_device
def test_the_current_stream_is_used():
    """The kernel waits for what its own stream does before it.

    Here that is a second of sleep, and then the copy of the kernel's input.
    """
    g, x, a, b = draw(3000, 8, 24)
    expected = run(g, x, a, b)
    torch.cuda.synchronize()
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)
        late.copy_(x)
        results = run(g, late, a, b)
    stream.synchronize()
    assert same(results, expected)


@needs_device
def test_a_thread_that_never_used_cuda():
    tensors, results = draw(300, 8, 24), []
    thread = threading.Thread(target=lambda: results.append(run(*tensors)))
    thread.start()
    thread.join()
    assert results
    assert max(errors(results[0], *tensors).values()) < LIMIT


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_another_device_than_the_current_one():
    assert torch.cuda.current_device() == 0
    check(*on("cuda:1", *data(300, 8, 24)))
    check(*on("cuda:0", *data(300, 8, 24)))


@needs_device
def test_more_than_2_to_the_31_elements():
    """Also over 2^29 packs: the span, in bfloat16, allows loads of one element only."""
    rows, groups, span = 2**31 // 49 + 3, 7, 7
    if torch.cuda.mem_get_info()[0] < 6 * 2 * rows * groups * span:
        pytest.skip("needs 26 GB of GPU memory")
    _, _, a, b = draw(1, groups, span)
    x = torch.randn(rows, groups, span, device=DEVICE, dtype=torch.bfloat16)
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
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (257, 3, 24), (40, 51, 7), (2, 3, 1001), (5000, 8, 24)], ids=str
)
def test_ladder(stage, dtype, shape):
    g, x, a, b = draw(*shape, dtype=dtype)
    worst = errors((ladder.forward(x, a, b), *ladder.backward(stage, g, x, a, b)), g, x, a, b)
    # atomics: the 40,000 terms of one sum are added one after the other
    assert max(worst.values()) < 512, worst


def value_and_gradients(function, inputs, dim):
    y = function(*inputs, dim=dim)
    # the gradient of a sum has stride 0
    return y, *torch.autograd.grad(y.to(torch.promote_types(y.dtype, torch.float32)).sum(), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, dim", [((5, 7, 96), -1), ((3, 8, 14, 14), 1), ((96,), 0)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_the_operator(dtype, shape, dim, layout):
    """What users call: `katlib.rational`, against the reference on the CPU."""
    compute = torch.promote_types(dtype, torch.float32)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    if layout == "transposed" and x.ndim > 1:
        x = x.mT.contiguous().mT
    a, b = torch.randn(1, 6, dtype=compute), torch.randn(4, 4, dtype=compute)
    inputs = tuple(t.to(DEVICE).requires_grad_() for t in (x, a, b))
    wide = tuple(t.double().requires_grad_() for t in (x, a, b))
    results = value_and_gradients(katlib.rational, inputs, dim)
    references = value_and_gradients(katlib.rational_reference, wide, dim)
    for result, reference in zip(results, references):
        tolerance = 32 * torch.finfo(result.dtype).eps
        largest = reference.abs().max().item()
        torch.testing.assert_close(
            result.cpu().double(), reference, rtol=tolerance, atol=tolerance * largest
        )


@pytest.fixture
def float64_inputs():
    shapes = (3, 12), (2, 6), (3, 4)
    return tuple(
        torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
        for shape in shapes
    )


def test_gradcheck(float64_inputs):
    assert torch.autograd.gradcheck(katlib.rational, float64_inputs)


def test_gradgradcheck(float64_inputs):
    assert torch.autograd.gradgradcheck(katlib.rational, float64_inputs)


@pytest.fixture(params=DTYPES, ids=str)
def operator_inputs(request):
    """g, x, a and b for channels in dimension 1."""
    g, *inputs = draw(3, 4, 5, dtype=request.param)
    return g, *(t.requires_grad_() for t in inputs)


def test_opcheck_forward(operator_inputs):
    _, *inputs = operator_inputs
    torch.library.opcheck(torch.ops.katlib.rational.default, (*inputs, 1))


@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, True)], ids=str)
def test_opcheck_backward(operator_inputs, asked):
    arguments = *operator_inputs, 1, *asked
    torch.library.opcheck(torch.ops.katlib.rational_backward.default, arguments)
