"""The proof that the emulator's checks would notice a mistake in rational.cu.

Each mutant is a copy of it with one changed sign, bound, index or barrier, and must be caught.
"""

import shutil

import pytest
import torch
from oracle import data, errors, with_zeros

import katlib.cuda
from emulator.checking import ASKED, LIMIT, check
from katlib.cuda.emulator import emulation

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="the emulator needs g++"),
    pytest.mark.slow,
]

# how forward and backward find a group's rows of the coefficients
FORWARD_ROWS = "derivative;\n    a += size_t(walk.group / a_share)"
BACKWARD_ROWS = "denominator[N + 1];\n    a += size_t(walk.group / a_share)"
FORWARD_B = "b_share) * N;\n    load(a, b, numerator, denominator);\n#pragma"
BACKWARD_B = "b_share) * N;\n    load(a, b, numerator, denominator);\n    if"

MUTANTS = [
    # signs
    ("odd = times_sign(g_over_Q, t)", "odd = g_over_Q"),
    ("odd = times_sign(g_over_Q, t)", "odd = times_sign(g_over_Q, -t)"),
    ("__float_as_uint(x + 0)", "__float_as_uint(x)"),
    ("k % 2 ? odd", "k % 2 == 0 ? odd"),
    ("g_over_Q) * power", "odd) * power"),
    ("< 0 ? total : -total", "< 0 ? -total : total"),
    ("< 0 ? total : -total", "<= 0 ? total : -total"),
    ("dP - odd * (", "dP + odd * ("),
    ("dP - odd * (", "dP - g_over_Q * ("),
    ("fabs(t), derivative)", "t, derivative)"),
    ("fabs(t), dQ)", "t, dQ)"),
    ("z = fabs(x);\n    Real power", "z = x;\n    Real power"),
    ("= fabs(b[", "= (b["),
    # bounds
    ("offset < end", "offset <= end"),
    ("column >= packs", "column > packs"),
    ("slots && group < groups ?", "slots ?"),
    ("count = share * parts", "count = share * parts - 1"),
    ("loaded[l] = i < count ? *from : 0;", "loaded[l] = *from;"),
    ("l < LOADS; l++) total", "l < LOADS - 1; l++) total"),
    ("step = threads / parts * next_group +", "step ="),
    ("part += threads % parts", "part += 0"),
    ("from += next_group - parts", "from += 0"),
    ("threadIdx.x / parts * next_group + threadIdx.x", "threadIdx.x"),
    ("slot = 0; valid", "slot = 1; valid"),
    ("lane = rank; lane < lanes;", "lane = rank; lane < lanes - 1;"),
    ("lane = rank; lane < lanes; lane += team", "lane = rank; lane < lanes; lane += WARP"),
    ("unsigned warp = 1;", "unsigned warp = 2;"),
    ("if (k <= M)", "if (k < M)"),
    ("if (k <= N)", "if (k < N)"),
    ("k <= M || k <= N", "k <= N"),
    ("b_term = g_over_Q * F,", "b_term = g_over_Q + F,"),
    ("i = K - 1; i >= 0", "i = K - 1; i > 0"),
    ("first < items;", "first < group_tile;"),
    ("valid = item < items && group < groups", "valid = item < items"),
    ("half = team / 2", "half = team / 4"),
    ("half = WARP / 2", "half = WARP / 4"),
    # sums
    ("+ blockIdx.y] = total", "] = total"),
    ("threadIdx.x] += sum[k]", "threadIdx.x] = sum[k]"),
    ("sums[k][threadIdx.x] = 0;", ";"),
    ("local) * lanes + lane]", "local) * lanes + rank]"),
    # barriers
    ("__syncthreads();\n        add_up_block", "        add_up_block"),
    ("__syncthreads();\n    if", "    if"),
    # the way of a thread
    ("offset += gap", "offset -= gap"),
    ("+ group * packs + column", "+ column"),
    ("column_step = S % packs", "column_step = 0"),
    # which row of the coefficients
    (FORWARD_ROWS, FORWARD_ROWS.replace(" / a_share", "")),
    (BACKWARD_ROWS, BACKWARD_ROWS.replace(" / a_share", "")),
    (FORWARD_B, FORWARD_B.replace("b_share", "1")),
    (BACKWARD_B, BACKWARD_B.replace("b_share", "1")),
    ("count = share * parts", "count = parts"),
    ("M + 1 : N, share", "N : M + 1, share"),
    ("? a_share : b_share", "? b_share : a_share"),
    ("partial + row * share * next_group", "partial + row * next_group"),
    # what is computed unless it is told otherwise
    ("#define INPUT_GRADIENT true", "#define INPUT_GRADIENT false"),
    ("#define COEFFICIENT_GRADIENTS true", "#define COEFFICIENT_GRADIENTS false"),
]

# only seen where one of the gradients is computed alone
IF_INPUT, IF_COEFFICIENTS = "if constexpr (INPUT_GRADIENT)", "if constexpr (COEFFICIENT_GRADIENTS)"
MUTANTS_OF_ONE_GRADIENT = [
    (IF_INPUT + " dx[", IF_COEFFICIENTS + " if (dx) dx["),
    (IF_COEFFICIENTS + " {\n" + 20 * " " + "if", IF_INPUT + " {\n" + 20 * " " + "if"),
    (IF_COEFFICIENTS + " {\n        for", IF_INPUT + " {\n        for"),
    (IF_COEFFICIENTS + " {\n#pragma", IF_INPUT + " {\n#pragma"),
    ("dP - odd * (", "dP + odd * ("),
    ("z = fabs(x);\n    Real power", "z = x;\n    Real power"),
    ("__syncthreads();\n        add_up_block", "        add_up_block"),
]


# only seen where elements are huge
MUTANTS_OF_HUGE = [
    ("MAY_OVERFLOW = sizeof(Real) == 4 && (M > 5 || N > 5)", "MAY_OVERFLOW = false"),
    ("fabs(x) > LIMIT", "x > LIMIT"),
    ("if (any_huge) forward_huge", "if (false) forward_huge"),
    ("if (any_huge) backward_huge", "if (false) backward_huge"),
    ("if (!is_huge(t)) add_terms", "add_terms"),
    ("FLUSH && !any_huge", "FLUSH"),
    ("last = walk.offset", "last = 0"),
    ("t < 0 ? -at.F : at.F", "at.F"),
    ("b_term *= fabs(t)", "b_term *= t"),
    ("dP = dP * x + P", "dP = dP * z + P"),
    ("dQ = dQ * z + Q", "dQ = dQ * x + Q"),
    ("(j ? fabs(b[j - 1]) : 1)", "(j ? b[j - 1] : 1)"),
    ("(j ? fabs(b[j - 1]) : 1)", "(j ? fabs(b[j - 1]) : 0)"),
]


def mutated(tmp_path, old, new):
    source = katlib.cuda.SOURCE.read_text()
    assert source.count(old) == 1, f"{old!r} is in rational.cu {source.count(old)} times"
    path = tmp_path / "mutant.cu"
    path.write_text(source.replace(old, new))
    return path


def probe():
    """Small launches that together reach every line: idle threads and groups, threads that change
    column, sums put aside several times, a second kernel of several warps."""
    torch.manual_seed(0)
    check(*with_zeros(*data(40, 51, 7)), multiprocessors=4, threads=256)
    check(*data(3, 2, 1001), multiprocessors=4, threads=512)
    check(*data(150, 1, 257), multiprocessors=1, threads=256)
    check(*data(40, 1, 257), multiprocessors=40, threads=256)
    check(*data(40, 12, 24, a_share=12, b_share=3))
    # a thread of rational_finish adds up 13 or 14 of the 3500 partial sums of one coefficient
    check(*data(6, 700, 1, a_share=700, b_share=7), multiprocessors=15, threads=256)


def probe_one_gradient():
    torch.manual_seed(0)
    g, x, a, b = with_zeros(*data(40, 51, 7))
    for asked in ("input", "coefficients"):
        with emulation(multiprocessors=4, threads=256):
            gradients = katlib.cuda.backward(g, x, a, b, x.shape, *ASKED[asked])
        assert max(errors((None, *gradients), g, x, a, b).values()) < LIMIT


def probe_huge():
    torch.manual_seed(0)
    # a thread gets several packs, some of them with huge elements
    g, x, a, b = data(90, 3, 7, 8, 8)
    x.view(-1)[::5], x.view(-1)[1::5] = 1e6, -1e6
    check(g, x, a, 100 * b, multiprocessors=1, threads=256)
    # Q = 1 + 1 and F = a_0 / Q
    x, a, b = x / 1000, a * torch.eye(9)[0], 1e-3 * torch.eye(8)[0].expand(3, 8).contiguous()
    check(g, x, a, b, multiprocessors=1, threads=256)


def test_the_source_passes_the_probes():
    probe()
    probe_one_gradient()
    probe_huge()


@pytest.mark.parametrize("old, new", MUTANTS)
def test_a_mutant_is_caught(tmp_path, monkeypatch, old, new):
    monkeypatch.setattr(katlib.cuda, "SOURCE", mutated(tmp_path, old, new))
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        probe()
    assert "error:" not in str(caught.value), "it did not even compile"


@pytest.mark.parametrize("old, new", MUTANTS_OF_HUGE)
def test_a_mutant_of_huge_elements_is_caught(tmp_path, monkeypatch, old, new):
    monkeypatch.setattr(katlib.cuda, "SOURCE", mutated(tmp_path, old, new))
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        probe_huge()
    assert "error:" not in str(caught.value), "it did not even compile"


@pytest.mark.parametrize("old, new", MUTANTS_OF_ONE_GRADIENT)
def test_a_mutant_of_one_gradient_is_caught(tmp_path, monkeypatch, old, new):
    monkeypatch.setattr(katlib.cuda, "SOURCE", mutated(tmp_path, old, new))
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        probe_one_gradient()
    assert "error:" not in str(caught.value), "it did not even compile"
