"""rational.cu, unchanged, on the CPU: every type and hostile shapes, against the oracle."""

import shutil

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

import katlib.cuda
from emulator.checking import ASKED, LIMIT, check, run
from katlib.cuda import ladder, vector_width
from katlib.cuda.emulator import Emulated, build, emulation, load, same_bits

# A kernel of nothing but the approximate reciprocal
RECIPROCAL = """extern "C" __global__ void reciprocal(const float *y, float *out) {
    out[threadIdx.x] = __fdividef(1, y[threadIdx.x]);
}"""

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the emulator needs g++")

HOSTILE_SHAPES = [
    # KAT-T: groups of 24 channels; rows around a power of two
    (255, 8, 24),
    (256, 3, 24),
    (257, 1, 24),
    # wider groups, so that one row of a group takes many threads
    (130, 8, 96),
    # a prime span: one element at a time; groups that do not divide evenly among blocks
    (40, 51, 7),
    # single elements
    (1, 1, 1),
    (3, 2, 1),
    (1, 70, 1),
    # (N, C, H, W): long spans, also such that threads change column
    (5, 2, 4096),
    (2, 3, 4104),
    (1, 1, 20000),
]


# ---- Values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", HOSTILE_SHAPES, ids=str)
def test_every_type_and_hostile_shapes(dtype, shape):
    check(*data(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_have_the_types_and_shapes_of_what_they_belong_to(dtype):
    g, x, a, b = data(40, 6, 24, dtype=dtype, a_share=2, b_share=3)
    for result, like in zip(run(g, x, a, b), (x, x, a, b)):
        assert (result.dtype, result.shape) == (like.dtype, like.shape)


@pytest.mark.parametrize("a_share, b_share", [(8, 1), (1, 8), (2, 4), (8, 8)])
@pytest.mark.parametrize("shape", [(257, 8, 24), (40, 64, 7), (2, 8, 1001), (1, 8, 1)], ids=str)
def test_groups_share_coefficients(shape, a_share, b_share):
    """As the KAT models do: one numerator for all groups."""
    check(*with_zeros(*data(*shape, a_share=a_share, b_share=b_share)))


@pytest.mark.parametrize("a_share, b_share", [(8, 1), (1, 8), (2, 4), (8, 8)])
def test_groups_share_coefficients_of_polynomials(a_share, b_share):
    check(*data(33, 16, 24, m=5, n=0, a_share=a_share, b_share=b_share))


@pytest.mark.parametrize("m, n", [(0, 0), (0, 4), (5, 0), (1, 1), (8, 8)])
@pytest.mark.parametrize("dtype", (torch.float16, torch.float64), ids=str)
def test_degrees(dtype, m, n):
    check(*data(33, 3, 24, m, n, dtype))


@pytest.mark.parametrize("sign", [1, -1])
def test_zeros_have_a_positive_sign(sign):
    g, x, a, b = with_zeros(*data(64, 4, 24))
    check(sign * g, sign * x, a, sign * b)


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("shifted", ["x", "g"])
def test_misaligned(shifted, offset):
    """A tensor that starts in the middle of another one is read with narrower loads."""
    g, x, a, b = data(40, 2, 16, dtype=torch.bfloat16)
    moved = torch.empty(x.numel() + offset, dtype=x.dtype)[offset:].view_as(x).copy_(x)
    if shifted == "x":
        check(g, moved, a, b)
    else:
        check(moved, x, a, b)


@pytest.mark.parametrize("shape", [(257, 8, 24), (40, 51, 7), (2, 3, 4104)], ids=str)
def test_64_bit_offsets(monkeypatch, shape):
    """The variant for tensors of 2^29 packs and more, on small ones."""
    monkeypatch.setattr(katlib.cuda, "WIDE", 1)
    check(*data(*shape))


@pytest.mark.parametrize("multiprocessors, threads", [(1, 256), (3, 1024), (132, 2048)])
def test_devices_of_any_size(multiprocessors, threads):
    tensors = data(500, 6, 24, dtype=torch.bfloat16)
    check(*tensors, multiprocessors=multiprocessors, threads=threads)


# ---- The order of x in memory


def memory_order(t):
    """A 4-D tensor as contiguous, channels_last, or with two dimensions exchanged."""
    return {
        "contiguous": t,
        "channels_last": t.contiguous(memory_format=torch.channels_last),
        "transposed": t.transpose(1, 3).contiguous().transpose(1, 3),
    }


@pytest.mark.parametrize(
    "order, back", [("contiguous", (0, 1, 2, 3)), ("channels_last", (0, 2, 3, 1))]
)
@pytest.mark.parametrize("asked", ASKED)
def test_memory_is_read_in_its_own_order(order, back, asked):
    """NCHW as it is, and NHWC: in both, `shape` describes the memory and not the dimensions."""
    x, g = torch.randn(2, 3, 8, 5, 7)
    _, _, a, b = data(1, 2, 1)
    # in NCHW a group's span is 4 channels of 5 x 7 pixels, in NHWC it is 4 channels of one pixel
    shape = (3, 2, 4 * 5 * 7) if order == "contiguous" else (3 * 5 * 7, 2, 4)
    x, g = (memory_order(t)[order] for t in (x, g))
    results = run(g, x, a, b, shape, asked)
    # the same data, as a contiguous tensor in the order of the memory
    flat_g, flat_x = (t.permute(back).reshape(shape) for t in (g, x))
    y, dx, da, db = results
    flat = [t if t is None else t.permute(back).reshape(shape) for t in (y, dx)]
    worst = errors((*flat, da, db), flat_g, flat_x, a, b)
    assert max(worst.values()) < LIMIT, worst


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "transposed"])
def test_results_have_the_strides_of_x(order):
    x, g = (memory_order(t)[order] for t in torch.randn(2, 3, 8, 5, 7))
    _, _, a, b = data(1, 2, 1)
    y, dx, _, _ = run(g, x, a, b, (3, 2, 4 * 5 * 7))
    assert y.stride() == dx.stride() == x.stride()


def test_the_stride_of_a_dimension_of_size_one_says_nothing():
    g, x, a, b = data(1, 2, 24)
    odd = g.as_strided(g.shape, (1, 24, 1))
    assert odd.stride() != x.stride()
    assert all(same_bits(*pair) for pair in zip(run(odd, x, a, b), run(g, x, a, b)))


# ---- What is asked for


@pytest.mark.parametrize("shape", HOSTILE_SHAPES, ids=str)
@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_one_of_the_gradients_alone(asked, shape):
    check(*with_zeros(*data(*shape)), asked=asked)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_one_of_the_gradients_alone_of_every_type(asked, dtype):
    check(*data(257, 8, 24, dtype=dtype), asked=asked)


@pytest.mark.parametrize("m, n", [(0, 0), (0, 4), (5, 0), (8, 8)])
@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_one_of_the_gradients_alone_in_all_degrees(asked, m, n):
    check(*data(33, 4, 24, m, n, a_share=4, b_share=2), asked=asked)


@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_one_of_the_gradients_alone_with_64_bit_offsets(monkeypatch, asked):
    monkeypatch.setattr(katlib.cuda, "WIDE", 1)
    check(*data(40, 51, 7), asked=asked)


def test_the_input_gradient_alone_has_the_same_bits():
    tensors = data(257, 8, 24, dtype=torch.bfloat16)
    assert same_bits(run(*tensors, asked="input")[1], run(*tensors)[1])


def test_the_coefficient_gradients_alone_have_the_same_bits():
    tensors = data(257, 8, 24, dtype=torch.bfloat16)
    alone, both = run(*tensors, asked="coefficients"), run(*tensors)
    assert same_bits(alone[2], both[2])
    assert same_bits(alone[3], both[3])


def test_what_is_not_asked_for_is_none():
    tensors = data(40, 2, 24)
    _, dx, da, db = run(*tensors, asked="input")
    assert (dx is None, da is None, db is None) == (False, True, True)
    _, dx, da, db = run(*tensors, asked="coefficients")
    assert (dx is None, da is None, db is None) == (True, False, False)


@pytest.mark.parametrize(
    "asked, kernels",
    [
        ((True, True), ["rational_backward", "rational_finish"]),
        ((False, True), ["rational_backward", "rational_finish"]),
        ((True, False), ["rational_backward"]),
        ((False, False), []),
    ],
    ids=str,
)
def test_no_kernel_runs_without_need(asked, kernels):
    g, x, a, b = data(40, 2, 24)
    with emulation() as launched:
        katlib.cuda.backward(g, x, a, b, x.shape, *asked)
    assert launched == kernels


def test_nothing_asked_for_is_nothing_computed():
    g, x, a, b = data(40, 2, 24)
    assert katlib.cuda.backward(g, x, a, b, x.shape, False, False) == (None, None, None)


# ---- Empty tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 7), (4, 3, 0)], ids=str)
def test_empty_tensors_have_empty_outputs(dtype, shape):
    g, x, a, b = data(*shape, dtype=dtype)
    assert katlib.cuda.forward(x, a, b, shape).shape == shape
    assert katlib.cuda.backward(g, x, a, b, shape)[0].shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 7), (4, 3, 0)], ids=str)
@pytest.mark.parametrize("input_gradient", [True, False])
def test_empty_tensors_have_zero_coefficient_gradients(dtype, shape, input_gradient):
    g, x, a, b = data(*shape, dtype=dtype)
    _, da, db = katlib.cuda.backward(g, x, a, b, shape, input_gradient)
    for gradient, like in ((da, a), (db, b)):
        assert gradient.shape == like.shape
        assert not gradient.any()


@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_empty_tensors_give_only_what_is_asked_for(asked):
    g, x, a, b = data(0, 3, 7)
    gradients = katlib.cuda.backward(g, x, a, b, x.shape, *ASKED[asked])
    given = [gradient is not None for gradient in gradients]
    assert given == ([True, False, False] if asked == "input" else [False, True, True])


# ---- Numerical limits


@pytest.mark.parametrize("seed", range(8))
def test_long_sums_stay_exact(seed):
    """All terms equal is the worst case for a chain of additions: its roundings may all go one way.

    An H100's 135,000 threads get 185 elements each of 25 million; here 256 threads get 256 each.
    """
    torch.manual_seed(seed)
    g, x, a, b = data(1, 1, 1)
    g, x = (t.expand(1, 1, 1 << 16).contiguous() for t in (g, x))
    limit = 1e-6 / torch.finfo(torch.float32).eps
    check(g, x, a, b, multiprocessors=1, threads=256, limit=limit)


@pytest.mark.parametrize("coefficients", HUGE_COEFFICIENTS)
@pytest.mark.parametrize("m, n", HUGE_DEGREES)
@pytest.mark.parametrize("dtype, largest", HUGE_INPUTS)
def test_huge_inputs_have_the_right_values_and_gradients(dtype, largest, m, n, coefficients):
    """The largest half, and a million in the other types, where x^8 is 1e48."""
    check(*huge(dtype, largest, m, n, coefficients))


@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_one_of_the_gradients_alone_is_right_for_huge_inputs(asked):
    check(*huge(torch.float32, 1e6, 8, 8, "hundreds"), asked=asked)


@pytest.mark.parametrize("largest", [2.5e6, 1e10, 1e15])
def test_high_degrees_are_right_for_any_input(largest):
    check(*huge(torch.float32, largest, 8, 8, "ones"))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_huge_inputs_in_packs_of_every_width(width):
    g, x, a, b = huge(torch.float32, 1e6, 6, 6, "hundreds")
    shape = (-1, 2, width)
    check(g.reshape(shape), x.reshape(shape), a, b)


def test_the_emulated_reciprocal_is_the_chips(tmp_path):
    """0 above 2^126, one unit in the last place beside the true one elsewhere."""
    source = tmp_path / "reciprocal.cu"
    source.write_text(RECIPROCAL)
    y = torch.cat([2.0 ** torch.tensor([-3.0, 0, 126, 126.5, 127.9]), 1 + torch.rand(59)])
    out = torch.full((64,), torch.nan)
    module = Emulated(build(source, {}), 1, 64, True)
    module.launch("reciprocal", (1, 1), 64, "PP", y, out)
    assert out[:5].tolist() == [8.0, 1.0, 2.0**-126, 0.0, 0.0]
    units = (out[5:].double() * y[5:].double() - 1) / torch.finfo(torch.float32).eps
    assert 0.5 < units.abs().max() < 1.5


def test_a_million_to_the_fifth_is_summed_beside_a_denominator_of_one():
    """KAT's first function starts as the identity, b = 0, so the terms g x^5 / Q are as large as
    they get. No scaling may make them overflow."""
    g, x, a, b = data(16, 2, 8)
    a[:] = torch.eye(6)[1]
    outputs = run(g, 1e6 * x.sign(), a, 0 * b)
    assert all(t.isfinite().all() for t in outputs)
    assert outputs[2].abs().max() > 1e29


@pytest.fixture
def with_nan_and_infinity():
    g, x, a, b = data(8, 1, 8)
    x[0, 0, 0], x[1, 0, 1] = torch.nan, torch.inf
    return run(g, x, a, b)


@pytest.mark.parametrize("result", [0, 1], ids=["y", "dx"])
def test_nan_and_infinity_are_passed_on(with_nan_and_infinity, result):
    t = with_nan_and_infinity[result]
    assert t.isnan().sum() == 2
    assert t[0, 0, 0].isnan() and t[1, 0, 1].isnan()


@pytest.mark.parametrize("result", [2, 3], ids=["da", "db"])
def test_nan_and_infinity_reach_every_sum(with_nan_and_infinity, result):
    assert with_nan_and_infinity[result].isnan().all()


# ---- The ladder

# the stages without atomics
ORDERED_STAGES = ("stage5_two_stages", "stage6_packs")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("stage", ladder.STAGES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (257, 3, 24), (40, 51, 7), (2, 3, 1001)], ids=str)
def test_ladder(stage, dtype, shape):
    """Every stage sums the same terms; the last two in the same order whatever the threads do."""
    g, x, a, b = with_zeros(*data(*shape, dtype=dtype))
    with emulation(ordered=stage in ORDERED_STAGES):
        results = ladder.forward(x, a, b), *ladder.backward(stage, g, x, a, b)
    worst = errors(results, g, x, a, b)
    # long chains of additions
    assert max(worst.values()) < 4 * LIMIT, worst


# threads and blocks on 2 multiprocessors with room for 2 blocks each: 2 blocks for each group
SMALL = (257, 2, 24)
ELEMENTS, BLOCKS = 257 * 2 * 24, 4
ATOMICS = {
    "stage1_global_atomics": (ELEMENTS, 0),
    "stage2_shared_atomics": (BLOCKS, ELEMENTS),
    "stage3_registers": (BLOCKS * ladder.BLOCK, 0),
    "stage4_block_reduction": (BLOCKS, 0),
    "stage5_two_stages": (0, 0),
    "stage6_packs": (0, 0),
}


@pytest.mark.parametrize("stage", ladder.STAGES)
def test_the_atomics_of_a_stage_are_those_that_its_text_names(stage):
    with emulation(ordered=False) as launched:
        ladder.backward(stage, *data(*SMALL))
    counts = launched.atomics["global"], launched.atomics["shared"]
    assert counts == tuple(10 * n for n in ATOMICS[stage])


@pytest.mark.parametrize("stage", [s for s in ladder.STAGES if s not in ORDERED_STAGES])
def test_the_bits_of_a_stage_with_atomics_depend_on_the_order(stage):
    # of two blocks a + b is b + a
    device = emulation(multiprocessors=4)
    with device, pytest.raises(RuntimeError, match="depends on the order"):
        ladder.backward(stage, *data(*SMALL))


@pytest.mark.parametrize("offset, width", [(0, 4), (1, 1), (2, 2)])
def test_the_stage_of_packs_reads_as_wide_as_the_addresses_allow(offset, width):
    g, x, a, b = data(40, 2, 24)
    moved = torch.empty(x.numel() + offset)[offset:].view_as(x).copy_(x)
    with emulation():
        results = ladder.forward(x, a, b), *ladder.backward("stage6_packs", g, moved, a, b)
    assert vector_width(24, 4, moved.data_ptr()) == width
    assert max(errors(results, g, x, a, b).values()) < LIMIT


# ---- A source that is a text

TWICE = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }'
SUM = 'extern "C" __global__ void sum(float *x) { atomicAdd(x, threadIdx.x ? 1.f : 1e8f); }'


def test_a_text_is_compiled_and_run():
    # the emulator has each order start from the same memory
    x = torch.ones(32)
    load(TWICE).launch("twice", (1, 1), 32, "P", x)
    assert x.tolist() == [2.0] * 32


def test_a_text_that_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match=r"error: .*nothing"):
        load(TWICE.replace("2", "nothing"))


def test_a_text_may_include_files_of_a_folder():
    text = (ladder.FOLDER / "stage1_global_atomics.cu").read_text()
    module = load(text, {"TYPE": "float", "M": 5, "N": 4}, ladder.FOLDER)
    assert module.library


def test_the_two_orders_of_a_sum_differ():
    sums = []
    for backwards in (False, True):
        x = torch.zeros(32)
        module = Emulated(load(SUM).library, 1, 64, False, backwards=backwards)
        module.launch("sum", (1, 1), 32, "P", x)
        sums.append(x[0].item())
    # neighbouring floats are 8 apart there
    assert sums == [1e8, 1e8 + 32]


# ---- Races


def threads_that(statement, declaration=""):
    """A kernel of 64 threads in each of two blocks, in which `t` is the thread."""
    return f"""extern "C" __global__ void racing(int *out) {{
        {declaration}
        [[maybe_unused]] const int t = threadIdx.x;
        {statement}
    }}"""


# volatile, or the compiler would leave out what changes nothing
SHARED = "[[maybe_unused]] __shared__ volatile int s[65];"
RACES = {
    "all write the same value": ("out[128] = 1;", ""),
    "all write the same value to shared memory": ("s[0] = 1;", SHARED),
    "a neighbour's value is read without a barrier": ("s[t] = 1; out[t] = s[t ^ 1] | 1;", SHARED),
    "a value is overwritten that others still read": (
        "s[t] = 1; __syncthreads(); if (s[0] | 1) s[t] = 1;",
        SHARED,
    ),
    "an addition that is not atomic": ("atomicAdd(out, 0); if (t == 9) out[0] = 0;", ""),
    "two blocks write one value": ("if (t == 0) out[0] = 1;", ""),
    "a shuffle is no barrier": (
        "s[t] = 1; __shfl_down_sync(0xffffffff, t, 1); if (s[t / 32 * 32 + 31] | 1) s[64] = 1;",
        SHARED,
    ),
}
ORDERLY = {
    "each its own": ("out[64 * blockIdx.x + t] = t;", ""),
    "a barrier between writing and reading": (
        "s[t] = t; __syncthreads(); out[64 * blockIdx.x + t] = s[63 - t];",
        SHARED,
    ),
    "atomic additions": ("atomicAdd(out, 1);", ""),
    "all read one value": ("out[64 * blockIdx.x + t + 1] = out[0];", ""),
    "a value of before the barrier is overwritten": (
        "s[t] = t; __syncthreads(); out[64 * blockIdx.x + t] = s[t ^ 1]; "
        "__syncthreads(); s[t] = 1;",
        SHARED,
    ),
    "shared memory is used again by the next block": (
        "if (t == int(blockIdx.x)) s[0] = 1;",
        SHARED,
    ),
}


def launch_watched(tmp_path, kernel):
    source = tmp_path / "kernel.cu"
    source.write_text(threads_that(*kernel))
    module = Emulated(build(source, {}, races=True), 1, 64, True)
    module.launch("racing", (2, 1), 64, "P", torch.zeros(200, dtype=torch.int32))


@pytest.mark.parametrize("kernel", RACES.values(), ids=RACES)
def test_a_race_is_found_that_changes_no_result(tmp_path, kernel):
    """The order in which threads and blocks run makes no difference to any of these."""
    with pytest.raises(RuntimeError, match=r"race: thread \d+ of block [01] \w+"):
        launch_watched(tmp_path, kernel)


@pytest.mark.parametrize("kernel", ORDERLY.values(), ids=ORDERLY)
def test_orderly_accesses_are_no_race(tmp_path, kernel):
    launch_watched(tmp_path, kernel)


@pytest.mark.parametrize(
    "dtype, shape",
    [*zip(DTYPES, [(64, 8, 24), (3, 2, 1001), (40, 51, 7), (130, 8, 24)])],
    ids=str,
)
def test_no_races(dtype, shape):
    check(*with_zeros(*data(*shape, dtype=dtype)), races=True)


@pytest.mark.parametrize("asked", ["input", "coefficients"])
def test_no_races_for_one_of_the_gradients_and_shared_coefficients(asked):
    check(*data(33, 16, 24, a_share=8, b_share=2), asked=asked, races=True)


def test_no_races_where_inputs_are_huge():
    check(*huge(torch.float32, 1e6, 8, 8), races=True)


@pytest.mark.parametrize("stage", ladder.STAGES)
def test_no_races_in_the_ladder(stage):
    g, x, a, b = data(257, 3, 24)
    with emulation(ordered=stage in ORDERED_STAGES, races=True):
        ladder.forward(x, a, b)
        ladder.backward(stage, g, x, a, b)
