"""The compiled CPU kernel against the float64 oracle, in every type and on hostile shapes; and how it comes into being."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import katlib
from katlib import cpu
from katlib.rational import initial_coefficients
from katlib.reference import evaluate, gradients

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++")),
    reason="there is no C++ compiler",
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {
    torch.float64: 1e-14,
    torch.float32: 4e-7,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}  # a unit in the last place, or a few


def inputs(dtype, rows, G, span, m=5, n=4):
    c = torch.promote_types(dtype, torch.float32)
    x, g = (torch.randn(rows, G, span).to(dtype) for _ in range(2))
    return g, x, torch.randn(G, m + 1, dtype=c), torch.randn(G, n, dtype=c)


# spans beside a vector's 4, 8 and 16 lanes, rows beside an item's or a tile's, and one row; strips of one vector, of one group, and of chunks of a group
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
]
BUILDS = {
    "native": (),
    "AVX2": ("-march=x86-64-v3",),
    "SSE": ("-march=x86-64-v2",),
}  # vectors of 64, 32 and 16 bytes on a processor with AVX-512


@pytest.fixture(params=BUILDS)
def build(request, monkeypatch):
    """The kernel built for another processor that this one can play, so that every size of a vector is tested here."""
    if BUILDS[request.param]:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
        if (
            request.param == "AVX2" and not {"avx2", "fma", "f16c", "bmi2"} <= set(flags)
        ) or "sse4_2" not in flags:
            pytest.skip(f"this processor has no {request.param}")
        monkeypatch.setattr(cpu, "OPTIONS", cpu.OPTIONS + BUILDS[request.param])
    for cached in (cpu._library, cpu._function):
        cached.cache_clear()
    yield request.param
    for cached in (cpu._library, cpu._function):
        cached.cache_clear()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_float64_oracle(dtype, shape, build):
    if not cpu.available(dtype, 5, 4):
        pytest.skip("this compiler has no float16")
    g, x, a, b = inputs(dtype, *shape)
    oracle = [t.double() for t in (g, x, a, b)]
    y, expected = cpu.forward(x, a, b), evaluate(*oracle[1:])
    error = (y.double() - expected).abs()
    # P is a sum of terms of both signs: rounding is relative to the sum of their absolute values
    P = evaluate(oracle[1].abs(), oracle[2].abs(), oracle[3])
    assert (error <= ROUNDING[dtype] * (P + expected.abs()) + 1e-7 * (dtype == torch.float16)).all()
    dx, da, db = cpu.backward(g, x, a, b)
    wanted = gradients(*oracle)
    assert_close(
        dx.double(),
        wanted[0],
        rtol=10 * ROUNDING[dtype],
        atol=20 * ROUNDING[dtype] * max([1.0, *wanted[0].abs().flatten().tolist()]),
    )
    c = torch.promote_types(dtype, torch.float32)
    terms = gradients(
        oracle[0].abs(), oracle[1].abs(), oracle[2].abs(), oracle[3].abs()
    )  # sums of absolute terms, from above
    for mine, true, scale in zip((da, db), wanted[1:], terms[1:]):
        assert mine.dtype == c
        assert (
            (mine.double() - true).abs()
            <= (1e-13 if dtype == torch.float64 else 1e-6) * (scale.abs() + 1e-30)
        ).all()


@needs_compiler
@pytest.mark.parametrize(
    "Ga, Gb, G, span",
    [(1, 8, 8, 24), (8, 1, 8, 16), (2, 3, 6, 7), (1, 1, 1, 40), (6, 6, 6, 5), (1, 12, 12, 3)],
)
def test_coefficients_shared_by_neighbouring_groups(Ga, Gb, G, span, build):
    g, x = torch.randn(2, 70, G * span, dtype=torch.float64)
    a, b = torch.randn(Ga, 6, dtype=torch.float64), torch.randn(Gb, 4, dtype=torch.float64)
    shape, full = (70, G, span), [c.repeat_interleave(G // len(c), 0) for c in (a, b)]
    y = cpu.forward(x, a, b, shape)
    assert y.shape == x.shape
    assert_close(y.view(shape), cpu.forward(x.view(shape), *full), rtol=0, atol=0)
    dx, da, db = cpu.backward(g, x, a, b, shape)
    wanted = gradients(g.view(shape), x.view(shape), *full)
    assert_close(dx.view(shape), wanted[0])
    for mine, c, true in zip((da, db), (a, b), wanted[1:]):
        assert mine.shape == c.shape
        assert_close(mine, true.view(len(c), -1, c.shape[1]).sum(1))


@needs_compiler
@pytest.mark.parametrize("m, n", [(0, 0), (0, 3), (1, 0), (3, 2), (8, 8)])
def test_other_degrees(m, n):
    g, x, a, b = inputs(torch.float64, 9, 3, 21, m, n)
    assert cpu.available(torch.float64, m, n)
    assert_close(cpu.forward(x, a, b), evaluate(x, a, b))
    for mine, theirs in zip(cpu.backward(g, x, a, b), gradients(g, x, a, b)):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_degrees_beyond_the_kernel_take_the_reference():
    x, a, b = (
        torch.randn(4, 6, dtype=torch.float64),
        torch.randn(1, 10, dtype=torch.float64),
        torch.randn(2, 9, dtype=torch.float64),
    )
    assert not cpu.available(torch.float64, 9, 9)
    assert_close(katlib.rational(x, a, b), katlib.rational_reference(x, a, b))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1000, 8, 24), (900, 4, 64), (2, 2, 60_001)])
def test_the_same_bits_whatever_the_threads(dtype, shape):
    if not cpu.available(dtype, 5, 4):
        pytest.skip("this compiler has no float16")
    tensors = inputs(dtype, *shape)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2, 1, 5):
            torch.set_num_threads(count)
            results.append((cpu.forward(*tensors[1:]), *cpu.backward(*tensors)))
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(t, first) for result in results[1:] for t, first in zip(result, results[0])
    )


@needs_compiler
def test_a_zero_denominator_learns_and_zero_inputs_are_right():
    g, x = torch.ones(1, 1, 3), torch.tensor([[[-2.0, 0.0, 1.0]]])
    dx, da, db = cpu.backward(g, x, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))
    assert (
        da.tolist() == [[3.0, -1.0]]
        and db.tolist() == [[-(-2 * 2 + 1 * 1), -(-2 * 4 + 1 * 1)]]
        and dx.tolist() == [[[1, 1, 1]]]
    )


@needs_compiler
def test_minus_zero_is_zero_and_the_sign_of_b_does_not_count(build):
    """At 0 the slope is a_1 - a_0 |b_1|, on either side of which the gradients of |x| and |b| differ in sign."""
    x, a = torch.tensor([[[0.0, -0.0] * 20]]), torch.tensor([[3.0, 1.0]])
    for b in (2.0, -2.0):
        dx, _, db = cpu.backward(torch.ones_like(x), x, a, torch.tensor([[b]]))
        assert (dx == 1 - 3 * 2).all() and db.item() == 0


@needs_compiler
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_types_are_rounded_as_torch_rounds_them(dtype, build):
    """F = a_0, so that what is stored is a_0 alone: ties, the largest numbers, the smallest, infinities and NaNs of any bits."""
    if not cpu.available(dtype, 0, 1):
        pytest.skip("this compiler has no float16")
    special = torch.tensor(
        [
            1.00390625,
            1.01171875,
            1.0009765625,
            1.00146484375,
            65504,
            65519.9,
            65520,
            3.4e38,
            6e-8,
            2.9e-8,
            1e-39,
            0,
            -0.0,
            torch.inf,
            -torch.inf,
        ]
    )
    others = (
        torch.cat(
            [torch.tensor([0x7FFFFFFF, -1, 0x7F800001]), torch.randint(-(2**31), 2**31 - 1, (500,))]
        )
        .to(torch.int32)
        .view(torch.float32)
    )
    a = torch.cat([special, others])[:, None]
    y = cpu.forward(torch.zeros(1, len(a), 3, dtype=dtype), a, torch.zeros(len(a), 1))
    assert_close(y[0], a.to(dtype).expand(-1, 3), rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_what_is_not_a_number_stays_so(build):
    x = torch.tensor([[[float("nan"), float("inf"), -float("inf"), 1e6, -1e6]]]).repeat(1, 1, 9)
    a, b = (c[None].float() for c in initial_coefficients("swish"))
    for dtype in (torch.float32, torch.bfloat16):
        y = cpu.forward(x.to(dtype), a, b)[0, 0]
        assert y[::5].isnan().all() and y[3::5].isfinite().all() and y[4::5].isfinite().all()
        assert torch.equal(y.isnan(), evaluate(x, a, b)[0, 0].isnan())


@needs_compiler
def test_coefficient_gradients_of_25_million_elements():
    g, x, a, b = inputs(torch.float32, 3072, 8, 1024)  # 25,165,824 elements
    _, da, db = cpu.backward(g, x, a, b)
    total, scale = 0.0, 0.0
    for rows in range(0, 3072, 256):
        oracle = [t[rows : rows + 256].double() for t in (g, x)] + [a.double(), b.double()]
        total = total + torch.cat(gradients(*oracle)[1:], 1)
        z, Q = (
            oracle[1].abs(),
            1 / evaluate(oracle[1], torch.ones_like(oracle[2][:, :1]), oracle[3]),
        )
        weights, F = oracle[0].abs() / Q, evaluate(*oracle[1:]).abs()
        scale = scale + torch.stack(
            [(weights * z**i).sum((0, 2)) for i in range(6)]
            + [(weights * F * z**j).sum((0, 2)) for j in range(1, 5)],
            1,
        )
    assert ((torch.cat([da, db], 1).double() - total).abs() / scale).max() <= 1e-6


def run(code, **environment):
    environment = {
        name: str(value)
        for name, value in (
            dict(os.environ, PYTHONPATH=str(Path(katlib.__file__).parents[1])) | environment
        ).items()
    }
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


USE = """
import torch, katlib
x, a, b = torch.randn(50, 16, requires_grad=True), torch.randn(1, 6), torch.randn(8, 4)
for _ in range(3):
    y = katlib.rational(x, a, b)
    y.sum().backward()
torch.testing.assert_close(y, katlib.rational_reference(x, a, b), rtol=1e-4, atol=1e-5)
print(katlib.cpu.available(torch.float32, 5, 4))
"""


@needs_compiler
def test_two_processes_that_start_at_once_compile_side_by_side(tmp_path):
    processes = [run(USE, KATLIB_CACHE=tmp_path) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip() == "True", err
    assert len(list(tmp_path.iterdir())) == 1  # one library, no parts


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_the_reference_runs_and_one_warning_says_so(tmp_path, compiler):
    (tmp_path / "bin").mkdir()
    if compiler == "broken":
        script = tmp_path / "bin" / "g++"
        script.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
        script.chmod(0o755)
    path = f"{tmp_path}/bin" + ("" if compiler == "none" else ":/usr/bin:/bin")
    process = run(USE, KATLIB_CACHE=tmp_path / "cache", PATH=path, CXX="")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.strip() == "False", err
    assert err.count("without its compiled kernel") == 1
    assert ("there is no C++ compiler" if compiler == "none" else "no such thing") in err


@needs_compiler
def test_a_cached_library_is_used_again(tmp_path):
    stamps = []
    for _ in range(2):
        assert run(USE, KATLIB_CACHE=tmp_path).wait(timeout=120) == 0
        stamps.append([path.stat().st_mtime_ns for path in tmp_path.iterdir()])
    assert stamps[0] == stamps[1] and len(stamps[0]) == 1


@needs_compiler
def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            katlib.rational(torch.randn(2, 8), torch.randn(1, 6), torch.randn(8, 4))
            .isfinite()
            .all()
        )
