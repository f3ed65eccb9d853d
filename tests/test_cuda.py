"""The host side of the CUDA backend, without a GPU: which variant is chosen, how it is launched, what reaches the driver."""

import ctypes
import struct
import types
import warnings

import pytest
import torch

import katlib.cuda
from katlib.cuda import jit, plan, vector_width

SHAPES = [(1, 1, 1), (1, 1, 5), (7, 3, 3), (40, 51, 7), (3, 300, 1), (5, 2, 129), (4, 3, 200), (2, 1, 1000), (64, 8, 3), (1, 5, 128)]   # rows, groups, packs


def walk(p, rows, groups, packs):
    """The offsets of the packs that each thread visits, in rational.cu's `Walk`, thread by thread."""
    row, slots = groups * packs, p.block // (p.group_tile * p.lanes)
    stride = p.parts * slots * p.lanes
    for tile in range(p.tiles):
        for part in range(p.parts):
            for thread in range(p.block):
                slot, group = thread // (p.group_tile * p.lanes), tile * p.group_tile + thread // p.lanes % p.group_tile
                if slot < slots and group < groups:
                    first = (part * slots + slot) * p.lanes + thread % p.lanes
                    for number in range(first, rows * packs, stride):
                        yield number // packs * row + group * packs + number % packs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("multiprocessors, threads", [(1, 256), (3, 1024)])
def test_a_plan_visits_every_pack_once(shape, multiprocessors, threads):
    rows, groups, packs = shape
    p = plan(rows, groups, packs, multiprocessors, threads)
    assert sorted(walk(p, *shape)) == list(range(rows * groups * packs))
    assert p.block % 32 == 0 and p.group_tile * p.lanes <= p.block <= jit.THREADS


@pytest.mark.parametrize("channels", [192, 384, 768, 1536, 3072])
@pytest.mark.parametrize("width", [8, 4])
def test_a_plan_fills_the_device(channels, width):
    """KAT-T, S and B on an H100: whole warps, and 0.9 of the threads that it can hold."""
    p = plan(128 * 197, 8, channels // 8 // width, 132, 1024)
    assert p.block == p.group_tile * p.lanes * (p.block // (p.group_tile * p.lanes))
    assert 0.9 * 132 * 1024 <= p.tiles * p.parts * p.block <= 132 * 1024


@pytest.mark.parametrize("rows, groups, packs", [(2 ** 29 - 1, 1, 1), (1, 1, 2 ** 29 - 1), (1, 2 ** 29 - 1, 1), (2 ** 20, 7, 73), (1, 3, 2 ** 27), (2 ** 14, 1, 2 ** 14)])
def test_offsets_fit_32_bits_below_the_limit(rows, groups, packs):
    p = plan(rows, groups, packs, 160, 2048)
    row, stride = groups * packs, p.parts * (p.block // (p.group_tile * p.lanes)) * p.lanes
    step, gap = stride // packs * row + stride % packs, row - packs
    assert rows * row < katlib.cuda.WIDE and rows * row + step + gap < 2 ** 31 and 2 * packs + stride < 2 ** 31
    assert p.tiles < 2 ** 31 and p.parts <= 65535


def test_the_load_is_as_wide_as_span_and_addresses_allow():
    assert [vector_width(span, 2, 0) for span in (24, 12, 6, 7)] == [8, 4, 2, 1]
    assert [vector_width(4096, 2, address) for address in (0, 256, 8, 4, 2)] == [8, 8, 4, 2, 1]
    assert vector_width(24, 2, 0, 4) == 2 and vector_width(24, 4) == 4 and vector_width(24, 8) == 2


def test_what_reaches_the_driver(monkeypatch):
    """The launch as cuLaunchKernel sees it: function, grid, block, stream, and the bytes of the arguments."""
    calls = []

    def launch(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        assert parameters is None and (extra[0], extra[2], extra[4]) == (1, 2, None)
        size = ctypes.c_size_t.from_address(extra[3]).value
        calls.append((function, (gx, gy, gz), (bx, by, bz), shared, stream, ctypes.string_at(extra[1], size)))
        return 0

    contexts = []
    driver = types.SimpleNamespace(cuLaunchKernel=launch, cuCtxPushCurrent_v2=lambda c: contexts.append(c) or 0, cuCtxPopCurrent_v2=lambda p: contexts.pop() and 0)
    monkeypatch.setattr(jit, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=1000 + index))
    module = object.__new__(jit.Module)
    module.index, module.context, module.functions, module.multiprocessors = 1, "context", {}, 132
    for number, name in enumerate(("rational_forward", "rational_backward", "rational_finish")):
        module.functions[name] = number, 1024
    monkeypatch.setattr(jit, "load", lambda source, definitions, index: module)

    x, a, b = torch.randn(394, 8, 24), torch.randn(8, 6), torch.randn(8, 4)
    y = katlib.cuda.forward(x, a, b)
    function, grid, block, shared, stream, parameters = calls.pop()
    assert (function, grid, block, shared, stream) == (0, (1, 99, 1), (192, 1, 1), 0, 1001)       # 4 rows of 48 packs in a block
    assert struct.unpack("PPPPiiiii", parameters) == (x.data_ptr(), a.data_ptr(), b.data_ptr(), y.data_ptr(), 394, 8, 6, 8, 6)

    dx, da, db = katlib.cuda.backward(y, x, a, b)
    (*_, parameters), (function, grid, block, _, _, finish) = calls
    *pointers, rows, groups, packs, tile, lanes = struct.unpack("PPPPPPiiiii", parameters)
    assert pointers[:5] == [t.data_ptr() for t in (y, x, a, b, dx)] and (rows, groups, packs, tile, lanes) == (394, 8, 6, 8, 6)
    assert (function, grid, block) == (2, (80, 1, 1), (32, 1, 1))
    assert struct.unpack("PPPPi", finish) == (pointers[5], b.data_ptr(), da.data_ptr(), db.data_ptr(), 99)
    assert not contexts                                                 # whatever was pushed was popped


def test_wrong_tensors_do_not_reach_the_kernel():
    x, a, b = torch.randn(4, 2, 8), torch.randn(2, 6), torch.randn(2, 4)
    for arguments in [(x.double(), a, b), (x.int(), a, b), (x.half(), a.half(), b.half()), (x, a[:1], b), (x[0], a, b), (x, a[0], b), (x, a[:, :0], b),
                      (x, torch.randn(2, 10), b), (x, a, torch.randn(2, 9)), (x.transpose(0, 2), a, b), (x[:, :, ::2], a, b), (x, a.to("meta"), b)]:
        with pytest.raises(ValueError, match="given: torch"):
            katlib.cuda.forward(*arguments)
    for g in (x[:2], x.double(), x[:1].expand(4, 2, 8)):
        with pytest.raises(ValueError, match="given: torch"):
            katlib.cuda.backward(g, x, a, b)


@pytest.fixture
def fresh():
    katlib.cuda.available.cache_clear()
    yield
    katlib.cuda.available.cache_clear()


def test_without_a_device_it_is_silent(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not katlib.cuda.available()


def test_a_device_without_a_compiler_is_told_once(fresh, monkeypatch):
    def load(*arguments):
        raise OSError("NVRTC was not found")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(jit, "load", load)
    with pytest.warns(UserWarning, match="NVRTC was not found"):
        assert not katlib.cuda.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not katlib.cuda.available()


@pytest.mark.skipif(not torch.version.cuda, reason="this torch was built without CUDA")
def test_compiling(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void kernel() { nonsense; }")
    with pytest.raises(RuntimeError, match="wrong.cu(.|\n)*nonsense"):
        jit.compile(source, {}, 90)
    source.write_text('extern "C" __global__ void kernel(int *p) { *p = VALUE; }')
    assert jit.compile(source, {"VALUE": 3}, 90)[:4] == b"\x7fELF"
    assert b".target sm_" in jit.compile(source, {"VALUE": 3}, 999)         # newer than NVRTC: PTX, which the driver compiles
