"""The compiled CPU kernel: its numbers against the float64 oracle, in every dtype and on hostile
shapes, and how it is compiled, kept and loaded."""

import functools
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from oracle import HUGE_COEFFICIENTS, HUGE_DEGREES, HUGE_INPUTS, errors, huge
from torch.testing import assert_close

import katlib
from katlib import cpu, files
from katlib.rational import initial_coefficients
from katlib.reference import evaluate, gradients

COMPILERS = [
    name for name in (os.environ.get("CXX"), "g++", "clang++") if name and shutil.which(name)
]
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="there is no C++ compiler")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)

# One or a few units in the last place
ROUNDING = {
    torch.float64: 1e-14,
    torch.float32: 4e-7,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}

# Spans around a vector's 4, 8 and 16 lanes; rows around those of an item and of a tile, and one
# row alone; strips of one vector, of one group, and of chunks of a group; and empty tensors.
SHAPES = [
    (1, 1, 1),
    (0, 3, 4),
    (3, 2, 0),
    (5, 4, 7),
    (255, 8, 16),
    (256, 8, 24),
    (257, 8, 15),
    (3, 2, 5000),
    (1, 1, 40_000),
    (700, 1, 48),
    (2, 300, 17),
    (1, 8, 7),
    (1, 8, 24),
    (1, 8, 25),
    (257, 8, 7),
    (255, 8, 25),
    (257, 3, 24),
    (3, 3, 5),
    (1500, 1, 1),
    (401, 3, 1),
    (90, 2, 200),
    (70, 3, 41),
    (2, 3, 9001),
    (70, 1040, 1),
    (33, 1041, 1),
    (50, 300, 7),
]

# (Ga, Gb, G, span)
SHARED = [
    (1, 8, 8, 24),
    (8, 1, 8, 16),
    (2, 3, 6, 7),
    (1, 1, 1, 40),
    (6, 6, 6, 5),
    (1, 12, 12, 3),
    (1, 1040, 1040, 1),
    (3, 351, 1053, 1),
]

# On a processor with AVX-512, vectors of 64, 32 and 16 bytes: the compiler's options for each, and
# the instructions that a processor must have to run the result.
BUILDS = {
    "native": ((), set()),
    "AVX2": (("-march=x86-64-v3",), {"avx2", "fma", "f16c", "bmi2", "sse4_2"}),
    "SSE": (("-march=x86-64-v2",), {"sse4_2"}),
}


# ---- The kernels under test


@pytest.fixture(scope="session")
def loaded():
    """For each build, the libraries and kernels that were loaded: no test loads one again."""
    return defaultdict(lambda: ({}, {}))


@pytest.fixture(params=BUILDS)
def build(request, monkeypatch, loaded):
    """Compiles for an older processor too, whose code this one can run: smaller vectors."""
    options, instructions = BUILDS[request.param]
    if options:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
        if not instructions <= set(flags):
            pytest.skip(f"this processor has no {request.param}")
        libraries, kernels = loaded[request.param]
        monkeypatch.setattr(cpu, "OPTIONS", cpu.OPTIONS + options)
        monkeypatch.setattr(cpu, "_libraries", libraries)
        monkeypatch.setattr(cpu, "_kernels", kernels)
        monkeypatch.setattr(cpu, "_failures", {})
    return request.param


def skip_unless_available(dtype, m=5, n=4):
    if not cpu.available(dtype, m, n):
        pytest.skip(f"this compiler has no {dtype}")


def draw(dtype, shape, m=5, n=4):
    """g, x, a, b for a shape (rows, G, span)."""
    rows, G, span = shape
    coefficient_dtype = torch.promote_types(dtype, torch.float32)
    g = torch.randn(rows, G, span).to(dtype)
    x = torch.randn(rows, G, span).to(dtype)
    a = torch.randn(G, m + 1, dtype=coefficient_dtype)
    b = torch.randn(G, n, dtype=coefficient_dtype)
    return g, x, a, b


class Problem(NamedTuple):
    """Inputs, what float64 makes of them, and the scale to which rounding errors are relative."""

    inputs: list  # g, x, a, b
    y: torch.Tensor
    y_scale: torch.Tensor
    gradients: list  # dx, da, db
    coefficient_scales: list  # of da, db


@functools.cache
def problem(dtype, shape) -> Problem:
    torch.manual_seed(0)
    inputs = draw(dtype, shape)
    g, x, a, b = (t.double() for t in inputs)
    y = evaluate(x, a, b)
    # P is a sum of terms of both signs, so its rounding error is relative to the sum of their
    # absolute values. The same holds for da and db.
    y_scale = evaluate(x.abs(), a.abs(), b) + y.abs()
    _, *coefficient_scales = gradients(g.abs(), x.abs(), a.abs(), b.abs())
    return Problem(
        list(inputs),
        y,
        y_scale,
        list(gradients(g, x, a, b)),
        [scale.abs() for scale in coefficient_scales],
    )


# ---- Against the oracle


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_agrees_with_float64(dtype, shape, build):
    skip_unless_available(dtype)
    case = problem(dtype, shape)
    y = cpu.forward(*case.inputs[1:], shape)
    error = (y.double() - case.y).abs()
    smallest = 1e-7 if dtype == torch.float16 else 0.0
    assert (error <= ROUNDING[dtype] * case.y_scale + smallest).all()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_input_gradient_agrees_with_float64(dtype, shape, build):
    skip_unless_available(dtype)
    case = problem(dtype, shape)
    expected = case.gradients[0]
    dx, _, _ = cpu.backward(*case.inputs, shape)
    largest = max([1.0, *expected.abs().flatten().tolist()])
    assert_close(
        dx.double(), expected, rtol=10 * ROUNDING[dtype], atol=20 * ROUNDING[dtype] * largest
    )


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_coefficient_gradients_agree_with_float64(dtype, shape, build):
    skip_unless_available(dtype)
    case = problem(dtype, shape)
    _, *actual = cpu.backward(*case.inputs, shape)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    for mine, true, scale in zip(actual, case.gradients[1:], case.coefficient_scales):
        assert mine.dtype == torch.promote_types(dtype, torch.float32)
        assert ((mine.double() - true).abs() <= tolerance * (scale + 1e-30)).all()


@needs_compiler
@pytest.mark.parametrize("m, n", [(0, 0), (0, 3), (1, 0), (3, 2), (8, 8)])
def test_other_degrees(m, n):
    shape = (9, 3, 21)
    g, x, a, b = draw(torch.float64, shape, m, n)
    assert cpu.available(torch.float64, m, n)
    assert_close(cpu.forward(x, a, b, shape), evaluate(x, a, b))
    for mine, theirs in zip(cpu.backward(g, x, a, b, shape), gradients(g, x, a, b)):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@needs_compiler
@pytest.mark.slow
def test_coefficient_gradients_of_25_million_elements():
    shape = (3072, 8, 1024)  # 25,165,824 elements
    g, x, a, b = draw(torch.float32, shape)
    _, da, db = cpu.backward(g, x, a, b, shape)
    total, scale = 0.0, 0.0
    for rows in range(0, 3072, 256):
        part = slice(rows, rows + 256)
        G, X, A, B = (t.double() for t in (g[part], x[part], a, b))
        total = total + torch.cat(gradients(G, X, A, B)[1:], 1)
        z = X.abs()
        weights = G.abs() * evaluate(X, torch.ones_like(A[:, :1]), B)  # |g| / Q
        F = evaluate(X, A, B).abs()
        of_a = [(weights * z**i).sum((0, 2)) for i in range(6)]
        of_b = [(weights * F * z**j).sum((0, 2)) for j in range(1, 5)]
        scale = scale + torch.stack(of_a + of_b, 1)
    assert ((torch.cat([da, db], 1).double() - total).abs() / scale).max() <= 1e-6


# ---- Coefficients that neighbouring groups share


def draw_shared(Ga, Gb, G, span):
    """g, x, a, b, the shape, and a and b with a row of their own for each group."""
    shape = (70, G, span)
    g, x = torch.randn(2, 70, G * span, dtype=torch.float64)
    a = torch.randn(Ga, 6, dtype=torch.float64)
    b = torch.randn(Gb, 4, dtype=torch.float64)
    repeated = [c.repeat_interleave(G // len(c), 0) for c in (a, b)]
    return g, x, a, b, shape, repeated


@needs_compiler
@pytest.mark.parametrize("sizes", SHARED)
def test_forward_with_shared_coefficients_is_forward_with_repeated_ones(sizes, build):
    _, x, a, b, shape, repeated = draw_shared(*sizes)
    y = cpu.forward(x, a, b, shape)
    assert y.shape == x.shape
    assert_close(y.view(shape), cpu.forward(x.view(shape), *repeated, shape), rtol=0, atol=0)


@needs_compiler
@pytest.mark.parametrize("sizes", SHARED)
def test_gradients_of_shared_coefficients_are_sums_over_their_groups(sizes, build):
    g, x, a, b, shape, repeated = draw_shared(*sizes)
    dx, da, db = cpu.backward(g, x, a, b, shape)
    expected_dx, *expected = gradients(g.view(shape), x.view(shape), *repeated)
    assert_close(dx.view(shape), expected_dx)
    for mine, c, true in zip((da, db), (a, b), expected):
        assert mine.shape == c.shape
        assert_close(mine, true.view(len(c), -1, c.shape[1]).sum(1))


# ---- How a tensor is cut into vectors

# Prints the lanes of a vector, and how many vectors, elements and strips the kernel goes through
# for (rows, groups, span).
COUNT = """
#include "rational.cpp"
#include <cstdio>
#include <cstdlib>
int main(int, char** sizes) {
    constexpr int lanes = LANES<Float>;
    const int64_t groups = atol(sizes[2]);
    const Plan plan(atol(sizes[1]), groups, atol(sizes[3]), groups, groups, lanes);
    long vectors = 0, elements = 0, strips = 0;
    for (int64_t item = 0; item < plan.items; item++)
        plan.for_each_strip(item, [&](int64_t, Range rows, Range columns) {
            strips++;
            plan.for_each_vector<lanes>(rows, columns, [&](int64_t, int64_t n) {
                vectors++;
                elements += n;
            });
        });
    printf("%d %ld %ld %ld", lanes, vectors, elements, strips);
}
"""


@pytest.fixture(scope="session")
def counts(tmp_path_factory):
    """A function from (rows, groups, span) to what COUNT prints."""
    program = tmp_path_factory.mktemp("count") / "count"
    options = [option for option in cpu.OPTIONS if option not in ("-O3", "-shared")]
    target = ["-march=native", "-DM=5", "-DN=4", f"-I{cpu.SOURCE.parent}", "-o", program]
    command = [COMPILERS[0], *options, *target, "-x", "c++", "-"]
    subprocess.run(command, input=COUNT, text=True, check=True)

    def count(*shape):
        result = subprocess.run([program, *map(str, shape)], capture_output=True, check=True)
        return map(int, result.stdout.split())

    return count


@needs_compiler
@pytest.mark.parametrize(
    "groups, span",
    [
        *((channels, 1) for channels in (1, 7, 1000, 1023, 1024, 1025, 1040, 1041, 4096, 50_021)),
        *((64, 24), (300, 7), (41, 25), (32, 49), (64, 65), (3, 2049)),
    ],
)
def test_vectors_are_nearly_full_for_any_number_of_channels(groups, span, counts):
    lanes, vectors, elements, strips = counts(1000, groups, span)
    assert elements == 1000 * groups * span
    assert vectors * lanes <= 1.3 * elements
    # beginning a strip takes time
    assert strips * 8 <= vectors


@needs_compiler
def test_a_strip_of_few_rows_is_one_group(counts):
    """Each strip has a table of coefficients, which would cost more than the lanes it saves."""
    lanes, vectors, _, _ = counts(8, 1040, 49)
    assert vectors == 8 * 1040 * -(-49 // lanes)


# ---- Only the gradients that are asked for


SOME_SHAPES = [(257, 8, 7), (256, 8, 24), (2, 3, 9001), (0, 3, 4)]


@needs_compiler
@pytest.mark.parametrize("shape", SOME_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_input_gradient_alone_has_the_same_bits(dtype, shape, build):
    skip_unless_available(dtype)
    tensors = draw(dtype, shape)
    dx, da, db = cpu.backward(*tensors, shape, coefficient_gradients=False)
    assert torch.equal(dx, cpu.backward(*tensors, shape)[0])
    assert da is None
    assert db is None


@needs_compiler
@pytest.mark.parametrize("shape", SOME_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_coefficient_gradients_alone_are_the_same(dtype, shape, build):
    """To rounding: the compiler is free to fuse other multiplications and additions."""
    skip_unless_available(dtype)
    case = problem(dtype, shape)
    dx, *alone = cpu.backward(*case.inputs, shape, input_gradient=False)
    _, *together = cpu.backward(*case.inputs, shape)
    assert dx is None
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    for mine, other, scale in zip(alone, together, case.coefficient_scales):
        assert ((mine - other).abs() <= tolerance * scale).all()


@needs_compiler
def test_no_gradients_if_none_is_asked_for():
    shape = (2, 3, 4)
    tensors = draw(torch.float32, shape)
    result = cpu.backward(*tensors, shape, input_gradient=False, coefficient_gradients=False)
    assert result == (None, None, None)


# ---- Dense tensors whose memory has another order


@pytest.fixture
def channels_last():
    """g and x (2, 6, 3, 5) in channels_last, a, b, and the (rows, G, span) of their memory."""
    g, x = (torch.randn(2, 6, 3, 5).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return g, x, torch.randn(3, 6), torch.randn(3, 4), (2 * 3 * 5, 3, 2)


def memory_order(t):
    """A channels_last tensor as the contiguous (N, H, W, C) that its memory is."""
    return t.permute(0, 2, 3, 1)


@needs_compiler
def test_forward_keeps_the_strides_of_channels_last(channels_last):
    _, x, a, b, shape = channels_last
    y = cpu.forward(x, a, b, shape)
    assert y.stride() == x.stride()
    assert torch.equal(memory_order(y), cpu.forward(memory_order(x), a, b, shape))


@needs_compiler
def test_forward_of_channels_last_groups_the_channels(channels_last):
    _, x, a, b, shape = channels_last
    expected = katlib.rational_reference(x, a, b, dim=1)
    assert_close(cpu.forward(x, a, b, shape), expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_backward_keeps_the_strides_of_channels_last(channels_last):
    g, x, a, b, shape = channels_last
    dx, da, db = cpu.backward(g, x, a, b, shape)
    expected = cpu.backward(memory_order(g), memory_order(x), a, b, shape)
    assert dx.stride() == x.stride()
    assert torch.equal(memory_order(dx), expected[0])
    assert torch.equal(da, expected[1])
    assert torch.equal(db, expected[2])


@needs_compiler
def test_the_input_gradient_alone_keeps_the_strides_of_channels_last(channels_last):
    g, x, a, b, shape = channels_last
    dx, _, _ = cpu.backward(g, x, a, b, shape, coefficient_gradients=False)
    assert dx.stride() == x.stride()


# ---- Signs, zeros and special numbers


@pytest.fixture
def zero_denominator():
    """dx, da, db for F = x at -2, 0 and 1, with g = 1."""
    g, x = torch.ones(1, 1, 3), torch.tensor([[[-2.0, 0.0, 1.0]]])
    return cpu.backward(g, x, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), (1, 1, 3))


@needs_compiler
def test_a_zero_denominator_learns(zero_denominator):
    _, _, db = zero_denominator
    assert db.tolist() == [[-(-2 * 2 + 1 * 1), -(-2 * 4 + 1 * 1)]]


@needs_compiler
def test_gradients_at_zero_inputs_are_right(zero_denominator):
    dx, da, _ = zero_denominator
    assert da.tolist() == [[3.0, -1.0]]
    assert dx.tolist() == [[[1, 1, 1]]]


@needs_compiler
@pytest.mark.parametrize("b", [2.0, -2.0])
def test_minus_zero_is_zero_and_the_sign_of_b_does_not_count(b, build):
    """At 0 the slope is a_1 - a_0 |b_1|: |x| and |b| have gradients of either sign around it."""
    x, a = torch.tensor([[[0.0, -0.0] * 20]]), torch.tensor([[3.0, 1.0]])
    dx, _, db = cpu.backward(torch.ones_like(x), x, a, torch.tensor([[b]]), (1, 1, 40))
    assert (dx == 1 - 3 * 2).all()
    assert db.item() == 0


def special_numbers():
    """Ties, the largest and the smallest numbers, infinities, and numbers and NaNs of any bits."""
    ties = [1.00390625, 1.01171875, 1.0009765625, 1.00146484375]
    large = [65504, 65519.9, 65520, 3.4e38, torch.inf, -torch.inf]
    small = [6e-8, 2.9e-8, 1e-39, 0, -0.0]
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7F800001])
    bits = torch.cat([nans, torch.randint(-(2**31), 2**31 - 1, (500,))]).to(torch.int32)
    return torch.cat([torch.tensor(ties + large + small), bits.view(torch.float32)])


@needs_compiler
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_types_are_rounded_as_torch_rounds_them(dtype, build):
    """F = a_0, so that what is stored is a_0 alone."""
    skip_unless_available(dtype, 0, 1)
    a = special_numbers()[:, None]
    shape = (1, len(a), 3)
    y = cpu.forward(torch.zeros(shape, dtype=dtype), a, torch.zeros(len(a), 1), shape)
    assert_close(y[0], a.to(dtype).expand(-1, 3), rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def swish():
    a, b = initial_coefficients("swish")
    return a[None].float(), b[None].float()


SPECIAL = [float("nan"), float("inf"), -float("inf"), 1e6, -1e6] * 9


@needs_compiler
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_nan_stays_nan_and_large_inputs_stay_finite(dtype, swish, build):
    y = cpu.forward(torch.tensor([[SPECIAL]], dtype=dtype), *swish, (1, 1, 45))[0, 0]
    assert y[::5].isnan().all()
    assert y[3::5].isfinite().all()
    assert y[4::5].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_nan_comes_out_where_the_reference_has_it(dtype, swish, build):
    x = torch.tensor([[SPECIAL]])
    y = cpu.forward(x.to(dtype), *swish, (1, 1, 45))
    assert torch.equal(y.isnan(), evaluate(x, *swish).isnan())


@needs_compiler
@pytest.mark.parametrize("coefficients", HUGE_COEFFICIENTS)
@pytest.mark.parametrize("m, n", HUGE_DEGREES)
@pytest.mark.parametrize("dtype, largest", HUGE_INPUTS)
def test_huge_inputs_have_the_right_values_and_gradients(dtype, largest, m, n, coefficients):
    """The largest half, and a million in the other types, where x^8 is 1e48."""
    skip_unless_available(dtype, m, n)
    g, x, a, b = huge(dtype, largest, m, n, coefficients)
    results = cpu.forward(x, a, b, x.shape), *cpu.backward(g, x, a, b, x.shape)
    assert max(errors(results, g, x, a, b).values()) < 8


@needs_compiler
@pytest.mark.parametrize("shape", [(257, 8, 7), (256, 8, 24), (2, 3, 9001)])
def test_huge_inputs_in_vectors_of_every_kind(shape, build):
    """Some of each vector's lanes, also at its end, and where each lane has its own group."""
    g, x, a, b = draw(torch.float32, shape, 6, 6)
    x.view(-1)[::5], x.view(-1)[1::5] = 1e6, -1e6
    results = cpu.forward(x, a, b, shape), *cpu.backward(g, x, a, b, shape)
    assert max(errors(results, g, x, a, b).values()) < 8


@needs_compiler
@pytest.mark.parametrize("asked", [(True, False), (False, True)])
def test_one_of_the_gradients_alone_is_right_for_huge_inputs(asked):
    g, x, a, b = huge(torch.float32, 1e6, 8, 8, "hundreds")
    results = None, *cpu.backward(g, x, a, b, x.shape, *asked)
    assert max(errors(results, g, x, a, b).values()) < 8


# ---- Threads


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1000, 8, 24), (900, 4, 64), (2, 2, 60_001)])
def test_the_same_bits_for_any_number_of_threads(dtype, shape, set_threads):
    skip_unless_available(dtype)
    tensors = draw(dtype, shape)
    results = []
    for count in (1, 2, 3, 2, 1, 5):
        set_threads(count)
        results.append((cpu.forward(*tensors[1:], shape), *cpu.backward(*tensors, shape)))
    assert all(
        torch.equal(t, first) for result in results[1:] for t, first in zip(result, results[0])
    )


@needs_compiler
def test_the_same_bits_without_an_openmp_runtime(set_threads, monkeypatch):
    """Then the kernel starts threads of its own."""
    shape = (1000, 8, 24)
    tensors = draw(torch.float32, shape)
    set_threads(3)
    expected = cpu.forward(*tensors[1:], shape)
    monkeypatch.setattr(cpu, "_parallel", lambda: None)
    assert torch.equal(cpu.forward(*tensors[1:], shape), expected)


def test_a_library_that_lacks_gomp_parallel_is_passed_over(monkeypatch):
    monkeypatch.setattr(cpu, "_loaded_libraries", lambda: ["/lib/libgomp.so"])
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda path: object())
    assert cpu._parallel.__wrapped__() is None


@pytest.mark.parametrize(
    "libraries",
    [[], ["/lib/libc.so.6"], ["/nowhere/libgomp.so.1"]],
    ids=["none is known", "none is OpenMP", "it cannot be loaded"],
)
def test_no_openmp_runtime_is_found(libraries, monkeypatch):
    monkeypatch.setattr(cpu, "_loaded_libraries", lambda: libraries)
    assert cpu._parallel.__wrapped__() is None


def test_torchs_own_openmp_runtime_is_preferred(monkeypatch):
    def load(path):
        asked.append(path)
        raise OSError

    asked = []
    paths = ["/lib/libgomp.so.1", "/site-packages/torch/lib/libgomp.so.1"]
    monkeypatch.setattr(cpu, "_loaded_libraries", lambda: paths)
    monkeypatch.setattr(cpu.ctypes, "CDLL", load)
    cpu._parallel.__wrapped__()
    assert asked == [paths[1], paths[0]]


@pytest.fixture
def no_proc(monkeypatch):
    """A system without /proc, such as macOS."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.parts[1] != "proc" and exists(path))


def test_without_proc_no_library_is_known_to_be_loaded(no_proc):
    assert cpu._loaded_libraries() == []


def test_without_proc_the_processor_is_what_python_says(no_proc):
    assert cpu._processor() == cpu.platform.machine() + cpu.platform.processor()


# ---- What the kernel does not serve


def test_degrees_beyond_the_kernel_take_the_reference():
    x = torch.randn(4, 6, dtype=torch.float64)
    a = torch.randn(1, 10, dtype=torch.float64)
    b = torch.randn(2, 9, dtype=torch.float64)
    assert not cpu.available(torch.float64, 9, 9)
    assert_close(katlib.rational(x, a, b), katlib.rational_reference(x, a, b))


@pytest.mark.parametrize("m, n", [(9, 4), (5, 9)])
def test_one_degree_beyond_the_kernel_is_enough(m, n):
    assert not cpu.available(torch.float32, m, n)


def test_other_dtypes_are_not_available():
    assert not cpu.available(torch.int32, 5, 4)


def test_a_dtype_that_the_compiler_lacks_is_not_available(monkeypatch):
    """As float16 with old compilers: the library has no function for it."""
    monkeypatch.setattr(cpu, "_library", lambda m, n: object())
    monkeypatch.setattr(cpu, "_kernels", {})
    assert not cpu.available(torch.float16, 5, 4)


@needs_compiler
def test_no_warning_where_all_is_well():
    x, a, b = torch.randn(2, 8), torch.randn(1, 6), torch.randn(8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert katlib.rational(x, a, b).isfinite().all()


# ---- First use, by whole processes


USE = """
import torch, katlib
x, a, b = torch.randn(50, 16, requires_grad=True), torch.randn(1, 3), torch.randn(8, 1)
for _ in range(3):
    y = katlib.rational(x, a, b)
    y.sum().backward()
torch.testing.assert_close(y, katlib.rational_reference(x, a, b), rtol=1e-4, atol=1e-5)
print(katlib.cpu.available(torch.float32, 2, 1))
"""


NO_HOME = "import pwd; pwd.getpwuid = lambda number: {}[number]\n"
FOLDERS = ("HOME", "KATLIB_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA")


def start(without_home=False, **changes):
    """Starts a process that uses katlib with degrees 2 and 1, and prints if it had the kernel."""
    environment = os.environ | {"PYTHONPATH": str(Path(katlib.__file__).parents[1])}
    program = USE
    if without_home:
        environment = {name: environment[name] for name in environment if name not in FOLDERS}
        program = NO_HOME + USE
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {name: str(value) for name, value in changes.items()},
    )


class Outcome(NamedTuple):
    returncode: int
    output: str
    errors: str


def wait(process) -> Outcome:
    output, errors = process.communicate(timeout=120)
    return Outcome(process.returncode, output.strip(), errors)


@pytest.fixture(scope="session")
def first_use(tmp_path_factory):
    """A cache folder that two processes found empty at the same time, and how they fared."""
    cache = tmp_path_factory.mktemp("cache")
    processes = [start(KATLIB_CACHE=cache) for _ in range(2)]
    return cache, [wait(process) for process in processes]


@needs_compiler
@pytest.mark.slow
def test_two_processes_that_start_at_once_both_get_the_kernel(first_use):
    _, outcomes = first_use
    for outcome in outcomes:
        assert outcome.returncode == 0, outcome.errors
        assert outcome.output == "True", outcome.errors


@needs_compiler
@pytest.mark.slow
def test_two_processes_that_start_at_once_leave_one_library(first_use):
    cache, _ = first_use
    assert len(list(cache.glob("*.so"))) == 1
    assert not list(cache.glob("*.part"))


@needs_compiler
@pytest.mark.slow
def test_a_cached_library_is_used_again(first_use):
    cache, _ = first_use
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*.so")}
    outcome = wait(start(KATLIB_CACHE=cache))
    assert outcome.returncode == 0, outcome.errors
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.so")} == before


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 4096, 100_000])
def test_a_library_that_was_cut_off_is_compiled_again(first_use, tmp_path, size):
    """Loaded as it is, it would kill the process."""
    whole = next(first_use[0].glob("*.so"))
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:size])
    outcome = wait(start(KATLIB_CACHE=tmp_path))
    assert (outcome.returncode, outcome.output) == (0, "True"), outcome.errors
    assert [path.read_bytes() for path in tmp_path.glob("*.so")] == [whole.read_bytes()]


@needs_compiler
@pytest.mark.slow
def test_a_user_without_a_home_gets_the_kernel():
    """As in a container that runs under a number that no user has."""
    outcome = wait(start(without_home=True))
    assert (outcome.returncode, outcome.output) == (0, "True"), outcome.errors
    assert outcome.errors.count("cannot keep its compiled kernels in a cache folder") == 1


@pytest.fixture(scope="session")
def without_compiler(tmp_path_factory):
    return wait(start(KATLIB_CACHE=tmp_path_factory.mktemp("cache"), PATH="/nowhere", CXX=""))


@pytest.fixture(scope="session")
def with_broken_compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    write_script(folder / "g++", "echo 'fatal error: no such thing' >&2; exit 1")
    return wait(start(KATLIB_CACHE=folder / "cache", PATH=f"{folder}:/usr/bin:/bin", CXX=""))


def write_script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


REASONS = {
    "without_compiler": "there is no C++ compiler",
    "with_broken_compiler": "no such thing",
}


@pytest.fixture(scope="session", params=REASONS)
def failure(request):
    return request.getfixturevalue(request.param), REASONS[request.param]


@pytest.mark.slow
def test_without_a_working_compiler_the_reference_runs(failure):
    outcome, _ = failure
    assert outcome.returncode == 0, outcome.errors
    assert outcome.output == "False", outcome.errors


@pytest.mark.slow
def test_without_a_working_compiler_one_warning_says_so_and_why(failure):
    outcome, reason = failure
    assert outcome.errors.count("without its compiled kernel") == 1
    assert reason in outcome.errors


# ---- First use, within this process


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """katlib.cpu as in a new process with an empty cache; gives the folder of the cache."""
    monkeypatch.setenv("KATLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "_libraries", {})
    monkeypatch.setattr(cpu, "_kernels", {})
    monkeypatch.setattr(cpu, "_failures", {})
    cpu._warn.cache_clear()
    files._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Sets $CXX to a script that notes each compilation and then runs `body`, where $out is the
    file to write. The function returned sets `body` and gives the notes, one line a compilation."""
    script, notes = tmp_path / "compiler", tmp_path / "notes"
    monkeypatch.setenv("CXX", str(script))

    def set_body(body):
        first_steps = (
            '[ "$1" = --version ] && exit 0',
            f'echo "$@" >> {notes}',
            'all="$@"',
            'for word in $all; do out="$word"; done',  # the last word of the command
        )
        write_script(script, "\n".join([*first_steps, body]))
        return lambda: notes.read_text().splitlines() if notes.exists() else []

    return set_body


@pytest.fixture(scope="session")
def good_library():
    """A library that is compiled already, for other tests of this file: degrees 5 and 4."""
    return Path(cpu._load_library(5, 4)._name)


def in_threads(count, function):
    """Calls the function in so many threads, which a barrier lets go at the same time."""
    barrier, results = threading.Barrier(count), []

    def call():
        barrier.wait()
        results.append(function())

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@needs_compiler
@pytest.mark.slow
def test_eight_threads_with_an_empty_cache_all_get_the_kernel(fresh, compiler):
    compilations = compiler(f'exec {COMPILERS[0]} "$@"')
    shape = (2, 3, 4)
    _, x, a, b = draw(torch.float32, shape, 2, 0)

    def use():
        return cpu.available(torch.float32, 2, 0) and cpu.forward(x, a, b, shape)

    results = in_threads(8, use)
    assert len(results) == 8
    for y in results:
        assert_close(y, evaluate(x, a, b))
    assert len(compilations()) == 1


@pytest.mark.filterwarnings("ignore:katlib runs the rational function")
def test_eight_threads_with_a_broken_compiler_ask_it_once(fresh, compiler):
    compilations = compiler("exit 1")
    assert in_threads(8, lambda: cpu.available(torch.float32, 5, 4)) == [False] * 8
    assert len(compilations()) == 2  # with -march=native and without


@needs_compiler
@pytest.mark.filterwarnings("ignore:katlib runs the rational function")
def test_a_failure_is_forgotten_after_a_while(fresh, compiler, good_library, monkeypatch):
    compiler("exit 1")
    assert not cpu.available(torch.float32, 5, 4)
    compiler(f'cp {good_library} "$out"')
    assert not cpu.available(torch.float32, 5, 4)
    monkeypatch.setattr(cpu, "RETRY_SECONDS", 0.0)
    assert cpu.available(torch.float32, 5, 4)


def test_a_failed_compilation_leaves_nothing_in_the_cache(fresh, compiler):
    compiler('echo half > "$out"; exit 1')
    with pytest.warns(UserWarning, match="could not compile rational.cpp: no message"):
        assert not cpu.available(torch.float32, 5, 4)
    assert kept(fresh) == []


def kept(folder):
    """The files of a cache, without the lock, which stays."""
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def library_name():
    return cpu._library_name(cpu._compiler(), 5, 4)


def put(text, folder, name):
    """A file in the cache whose name has the checksum that it should have."""
    folder.mkdir()
    path = folder / "file"
    path.write_text(text)
    return path.rename(folder / cpu._kept_name(name, path))


@needs_compiler
def test_a_library_of_another_system_is_compiled_again(fresh, compiler, good_library):
    compilations = compiler(f'cp {good_library} "$out"')
    put("whole, but not for this system", fresh, library_name())
    for _ in range(2):
        cpu._load_library(5, 4)
    assert len(compilations()) == 1


def test_a_library_that_never_loads_is_given_up(fresh, compiler):
    compilations = compiler('echo "no library" > "$out"')
    with pytest.warns(UserWarning, match="without its compiled kernel"):
        assert not cpu.available(torch.float32, 5, 4)
    assert len(compilations()) == 1


def test_a_compiler_that_does_not_know_the_processor_compiles_without_its_name(tmp_path, compiler):
    compilations = compiler('case "$all" in *march=native*) exit 1;; esac; echo library > "$out"')
    cpu._compile(cpu._compiler(), 5, 4, tmp_path / "library.so")
    assert (tmp_path / "library.so").read_text() == "library\n"
    assert ["-march=native" in line for line in compilations()] == [True, False]


@needs_compiler
def test_a_library_in_a_folder_that_is_read_only_is_used(
    fresh, compiler, good_library, monkeypatch
):
    compilations = compiler("exit 1")
    fresh.mkdir()
    shutil.copy(good_library, fresh / cpu._kept_name(library_name(), good_library))
    monkeypatch.setattr(cpu, "lock", refuse(OSError(30, "Read-only file system")))
    assert cpu.available(torch.float32, 5, 4)
    assert not compilations()


def refuse(error):
    def function(*arguments):
        raise error

    return function


def a_file_instead_of_the_folder(fresh, monkeypatch):
    fresh.write_text("a file")


def a_folder_that_cannot_be_made(fresh, monkeypatch):
    monkeypatch.setenv("KATLIB_CACHE", "/proc/katlib")


def a_lock_of_another_user(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "lock", refuse(PermissionError(13, "Permission denied")))


def a_file_system_without_locks(fresh, monkeypatch):
    error = NotImplementedError("FileSystem does not appear to support flock")
    monkeypatch.setattr(cpu, "lock", refuse(error))


def a_full_disk(fresh, monkeypatch):
    monkeypatch.setattr(cpu, "write_whole", refuse(OSError(28, "No space left on device")))


def a_damaged_library_of_another_user(fresh, monkeypatch):
    put("half a library", fresh, library_name()).write_text("half")
    a_lock_of_another_user(fresh, monkeypatch)


@needs_compiler
@pytest.mark.parametrize(
    "spoil, reason",
    [
        (a_file_instead_of_the_folder, "File exists"),
        (a_folder_that_cannot_be_made, "No such file"),
        (a_lock_of_another_user, "Permission denied"),
        (a_file_system_without_locks, "support flock"),
        (a_full_disk, "No space left"),
        (a_damaged_library_of_another_user, "Permission denied"),
    ],
)
def test_a_cache_that_cannot_be_used_is_told_once(
    fresh, compiler, good_library, monkeypatch, spoil, reason
):
    compilations = compiler(f'cp {good_library} "$out"')
    spoil(fresh, monkeypatch)
    with pytest.warns(UserWarning, match=f"cannot keep .*{reason}.*set KATLIB_CACHE") as told:
        for _ in range(2):
            cpu._load_library(5, 4)
    assert len(told) == 1
    assert len(compilations()) == 2


@needs_compiler
def test_what_another_process_compiled_while_this_one_waited_is_used(
    fresh, compiler, good_library, monkeypatch
):
    @contextmanager
    def lock(path):
        shutil.copy(good_library, fresh / cpu._kept_name(path.name, good_library))
        yield

    compilations = compiler("exit 1")
    monkeypatch.setattr(cpu, "lock", lock)
    assert cpu.available(torch.float32, 5, 4)
    assert not compilations()


def test_the_cache_is_where_the_environment_says(fresh, compiler, good_library, monkeypatch):
    compiler(f'cp {good_library} "$out"')
    monkeypatch.setenv("HOME", str(fresh.parent))
    monkeypatch.setenv("KATLIB_CACHE", "~/cache")
    cpu._load_library(5, 4)
    assert len(kept(fresh)) == 1


def test_no_compiler_is_an_error_that_names_what_was_tried(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(OSError, match=r"there is no C\+\+ compiler \(g\+\+, clang\+\+ or \$CXX\)"):
        cpu._compiler()


def test_cxx_goes_before_other_compilers(compiler):
    compiler("exit 0")
    assert cpu._compiler() == [os.environ["CXX"]]


def test_cxx_may_have_arguments(compiler, tmp_path, monkeypatch):
    compilations = compiler('echo library > "$out"')
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -m64 '-DA=1 2'")
    cpu._compile(cpu._compiler(), 5, 4, tmp_path / "library.so")
    assert compilations()[0].startswith("-m64 -DA=1 2 -march=native")


def test_cxx_may_be_a_path_with_a_space(compiler, tmp_path, monkeypatch):
    compiler("exit 0")
    script = Path(os.environ["CXX"]).rename(tmp_path / "my compiler")
    monkeypatch.setenv("CXX", str(script))
    assert cpu._compiler() == [str(script)]


def test_each_argument_of_cxx_has_libraries_of_its_own(compiler, monkeypatch):
    compiler("exit 0")
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -mno-fma")
    assert library_name() != cpu._library_name([cpu._compiler()[0]], 5, 4)


def test_a_cxx_that_is_no_command_is_an_error(monkeypatch):
    monkeypatch.setenv("CXX", "g++ '-m64")
    with pytest.raises(OSError, match=r"\$CXX is not a command: .*No closing quotation"):
        cpu._compiler()
