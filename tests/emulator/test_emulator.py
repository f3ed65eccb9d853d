"""rational.cu, unchanged, on the CPU: every type, hostile shapes, and the proof that these checks would notice a mistake."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracle import DTYPES, data, errors, with_zeros

import katlib.cuda
from emulator import build, emulation
from katlib.cuda import ladder

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the emulator needs g++")

LIMIT = 8  # rounding errors in units of the absolute terms: more than any of these shapes needs


@pytest.fixture(autouse=True)
def one_thread():
    """The emulator has one, and torch's own would only wait for work, and for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(g, x, a, b, limit=LIMIT, **device):
    with emulation(**device):
        y, (dx, da, db) = katlib.cuda.forward(x, a, b), katlib.cuda.backward(g, x, a, b)
    assert (
        y.dtype == dx.dtype == x.dtype
        and da.dtype == db.dtype == a.dtype
        and y.shape == dx.shape == x.shape
    )
    worst = errors((y, dx, da, db), g, x, a, b)
    assert max(worst.values()) < limit, worst
    return worst


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, groups, span",
    [
        (255, 8, 24),
        (256, 3, 24),
        (257, 1, 24),  # KAT-T: groups of 24 channels; rows around a power of two
        (130, 8, 96),  # wider groups, one row of a group on many threads
        (
            40,
            51,
            7,
        ),  # a prime span: one element at a time; groups that do not divide evenly among blocks
        (1, 1, 1),
        (3, 2, 1),
        (1, 70, 1),  # single elements
        (5, 2, 4096),
        (2, 3, 4104),
        (1, 1, 20000),  # (N, C, H, W): long spans, also such that threads change column
    ],
)
def test_every_type_and_hostile_shapes(dtype, rows, groups, span):
    check(*data(rows, groups, span, dtype=dtype))


@pytest.mark.parametrize("a_share, b_share", [(8, 1), (1, 8), (2, 4), (8, 8)])
def test_groups_share_coefficients(a_share, b_share):
    """As the KAT models do: one numerator for all groups."""
    for shape in ((257, 8, 24), (40, 64, 7), (2, 8, 1001), (1, 8, 1)):
        check(*with_zeros(*data(*shape, a_share=a_share, b_share=b_share)))
    check(*data(33, 16, 24, m=5, n=0, a_share=a_share, b_share=b_share))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 7), (4, 3, 0)], ids=str)
def test_empty(dtype, shape):
    g, x, a, b = data(*shape, dtype=dtype)
    y, (dx, da, db) = katlib.cuda.forward(x, a, b), katlib.cuda.backward(g, x, a, b)
    assert (
        y.shape == dx.shape == shape
        and da.shape == a.shape
        and db.shape == b.shape
        and not da.any()
        and not db.any()
    )


@pytest.mark.parametrize("m, n", [(0, 0), (0, 4), (5, 0), (1, 1), (8, 8)])
@pytest.mark.parametrize("dtype", (torch.float16, torch.float64), ids=str)
def test_degrees(dtype, m, n):
    check(*data(33, 3, 24, m, n, dtype))


def test_zeros_have_a_positive_sign():
    g, x, a, b = with_zeros(*data(64, 4, 24))
    check(g, x, a, b)
    check(-g, -x, a, -b)


@pytest.mark.parametrize("offset", range(1, 8))
def test_misaligned(offset):
    """A tensor that starts in the middle of another one is read with narrower loads."""
    g, x, a, b = data(40, 2, 16, dtype=torch.bfloat16)
    shifted = torch.empty(x.numel() + offset, dtype=x.dtype)[offset:].view_as(x).copy_(x)
    check(g, shifted, a, b)
    check(shifted, x, a, b)


def test_long_sums_stay_exact():
    """All terms equal is the worst case for a chain of additions: its roundings may all go one way. An H100's 135,000 threads get 185
    elements each of 25 million; here 256 threads get 256 each."""
    for _ in range(8):
        g, x, a, b = data(1, 1, 1)
        check(
            *[t.expand(1, 1, 1 << 16).contiguous() for t in (g, x)],
            a,
            b,
            multiprocessors=1,
            threads=256,
            limit=1e-6 / torch.finfo(torch.float32).eps,
        )


def test_huge_inputs_stay_finite():
    """The largest half in every degree, and a million in float32, where x^8 is 1e48."""
    for dtype, largest in ((torch.float16, 65504.0), (torch.float32, 1e6)):
        for m, n in ((5, 4), (8, 8)):
            g, x, a, b = data(16, 2, 8, m, n, dtype)
            x = x.sign() * largest
            a[:, n + 1 :] = 0  # or F itself would be too large for a half
            check(g, x, a, b) if dtype == torch.float16 else None
            with emulation():
                assert all(
                    t.isfinite().all()
                    for t in (katlib.cuda.forward(x, a, b), *katlib.cuda.backward(g, x, a, b))
                )


def test_a_million_to_the_fifth_is_summed_beside_a_denominator_of_one():
    """KAT's first function starts as the identity, b = 0: the terms g x^5 / Q are as large as they get, and no scaling may push them over."""
    g, x, a, b = data(16, 2, 8)
    a[:] = torch.eye(6)[1]
    with emulation():
        outputs = (
            katlib.cuda.forward(1e6 * x.sign(), a, 0 * b),
            *katlib.cuda.backward(g, 1e6 * x.sign(), a, 0 * b),
        )
    assert all(t.isfinite().all() for t in outputs) and outputs[2].abs().max() > 1e29


def test_nan_and_infinity_are_passed_on():
    g, x, a, b = data(8, 1, 8)
    x[0, 0, 0], x[1, 0, 1] = torch.nan, torch.inf
    with emulation():
        y, (dx, da, db) = katlib.cuda.forward(x, a, b), katlib.cuda.backward(g, x, a, b)
    for t in (y, dx):
        assert t.isnan().sum() == 2 and t[0, 0, 0].isnan() and t[1, 0, 1].isnan()
    assert da.isnan().all() and db.isnan().all()


def test_64_bit_offsets(monkeypatch):
    """The variant for tensors of 2^29 packs and more, on small ones."""
    monkeypatch.setattr(katlib.cuda, "WIDE", 1)
    for shape in ((257, 8, 24), (40, 51, 7), (2, 3, 4104)):
        check(*data(*shape))


def test_devices_of_any_size():
    g, x, a, b = data(500, 6, 24, dtype=torch.bfloat16)
    for multiprocessors, threads in ((1, 256), (3, 1024), (132, 2048)):
        check(g, x, a, b, multiprocessors=multiprocessors, threads=threads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("stage", ladder.STAGES)
def test_ladder(stage, dtype):
    """Every stage sums the same terms; the last one in the same order whatever the threads do."""
    for shape in ((1, 1, 1), (257, 3, 24), (40, 51, 7), (2, 3, 1001)):
        g, x, a, b = with_zeros(*data(*shape, dtype=dtype))
        with emulation(ordered=stage == "stage5_two_stages"):
            results = ladder.forward(x, a, b), *ladder.backward(stage, g, x, a, b)
        worst = errors(results, g, x, a, b)
        assert max(worst.values()) < 4 * LIMIT, worst  # long chains of additions


# Each is one changed sign, bound, index or barrier in a copy of rational.cu.
MUTANTS = [
    ("t < 0 ? -F : F", "t < 0 ? F : -F"),  # signs
    ("t < 0 ? -F : F", "t <= 0 ? -F : F"),
    ("< 0 ? total : -total", "< 0 ? -total : total"),
    ("< 0 ? total : -total", "<= 0 ? total : -total"),
    ("dP - (t", "dP + (t"),
    ("z = fabs(t)", "z = t"),
    ("= fabs(b[", "= (b["),
    ("offset < end", "offset <= end"),  # bounds
    ("column >= packs", "column > packs"),
    ("slots && group < groups ?", "slots ?"),
    ("i < share * parts", "i < share * parts - 1"),
    ("slot = 0; valid", "slot = 1; valid"),
    ("lane = rank; lane < lanes;", "lane = rank; lane < lanes - 1;"),
    ("lane = rank; lane < lanes; lane += team", "lane = rank; lane < lanes; lane += WARP"),
    ("unsigned warp = 1;", "unsigned warp = 2;"),
    ("i <= M; i++) {     ", "i < M; i++) {     "),
    ("j <= N; j++) {     ", "j < N; j++) {     "),
    ("i = K - 1; i >= 0", "i = K - 1; i > 0"),
    ("first < items;", "first < group_tile;"),
    ("valid = item < items && group < groups", "valid = item < items"),
    ("half = team / 2", "half = team / 4"),
    ("half = WARP / 2", "half = WARP / 4"),
    ("+ blockIdx.y] = total", "] = total"),  # sums
    ("threadIdx.x] += sum[k]", "threadIdx.x] = sum[k]"),
    ("sums[k][threadIdx.x] = 0;", ";"),
    ("local) * lanes + lane]", "local) * lanes + rank]"),
    ("total *= SCALE;", "total *= -SCALE;"),
    ("__syncthreads();\n\n", "\n\n"),  # barriers
    ("__syncthreads();\n    if", "    if"),
    ("offset += gap", "offset -= gap"),  # the way
    ("+ group * packs + column", "+ column"),
    ("column_step = S % packs", "column_step = 0"),
    (
        "walk.group / a_share, walk.group / b_share, numerator, denominator);\n    for",
        "walk.group, walk.group / b_share, numerator, denominator);\n    for",
    ),  # what is shared
    (
        "walk.group / a_share, walk.group / b_share, numerator, denominator);\n    for",
        "walk.group / a_share, walk.group, numerator, denominator);\n    for",
    ),
    ("i < share * parts", "i < parts"),
    ("row * share + i / parts", "row * share"),
    ("M + 1 : N, share", "N : M + 1, share"),
    ("? a_share : b_share", "? b_share : a_share"),
    ("row * share + i / parts", "row + i / parts"),
]


def probe():
    """Small launches that between them reach every line: idle threads and groups, threads that change column, sums put aside
    several times, a second kernel of several warps."""
    torch.manual_seed(0)
    check(*with_zeros(*data(40, 51, 7)), multiprocessors=4, threads=256)
    check(*data(3, 2, 1001), multiprocessors=4, threads=512)
    check(*data(150, 1, 257), multiprocessors=1, threads=256)
    check(*data(40, 1, 257), multiprocessors=40, threads=256)
    check(*data(40, 12, 24, a_share=12, b_share=3))


def test_the_checks_bite(tmp_path, monkeypatch):
    """Every mutant is caught, and the source as it is passes the same probe."""
    source = katlib.cuda.SOURCE.read_text()
    variants = []
    for number, (old, new) in enumerate([("", ""), *MUTANTS]):
        assert not old or source.count(old) == 1, (
            f"{old!r} is in rational.cu {source.count(old)} times"
        )
        variants.append(tmp_path / f"mutant{number}.cu")
        variants[-1].write_text(source.replace(old, new, 1))
    definitions = dict(katlib.cuda.definitions(*data(1, 1, 7)[1:], width=1, wide=False))
    with ThreadPoolExecutor(2) as pool:  # compile them two at a time
        list(pool.map(lambda path: build(path, definitions), variants))
    survivors = []
    for path, (old, new) in zip(variants, [("", ""), *MUTANTS]):
        monkeypatch.setattr(katlib.cuda, "SOURCE", path)
        try:
            probe()
            survivors.append((old, new))
        except (AssertionError, RuntimeError):
            pass
    assert survivors == [("", "")]
