"""The host side of the CUDA backend, without a GPU: which variant is chosen, how it is launched, what reaches the driver."""

import ctypes
import functools
import locale
import shutil
import struct
import subprocess
import types
import warnings

import pytest
import torch

import katlib.cuda
from katlib.cuda import jit, plan, vector_width

SHAPES = [
    (1, 1, 1),
    (1, 1, 5),
    (7, 3, 3),
    (40, 51, 7),
    (3, 300, 1),
    (5, 2, 129),
    (4, 3, 200),
    (2, 1, 1000),
    (64, 8, 3),
    (1, 5, 128),
]  # rows, groups, packs


def walk(p, rows, groups, packs):
    """The offsets of the packs that each thread visits, in rational.cu's `Walk`, thread by thread."""
    row, slots = groups * packs, p.block // (p.group_tile * p.lanes)
    stride = p.parts * slots * p.lanes
    for tile in range(p.tiles):
        for part in range(p.parts):
            for thread in range(p.block):
                slot, group = (
                    thread // (p.group_tile * p.lanes),
                    tile * p.group_tile + thread // p.lanes % p.group_tile,
                )
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


@pytest.mark.parametrize(
    "rows, groups, packs",
    [
        (2**29 - 1, 1, 1),
        (1, 1, 2**29 - 1),
        (1, 2**29 - 1, 1),
        (2**20, 7, 73),
        (1, 3, 2**27),
        (2**14, 1, 2**14),
    ],
)
def test_offsets_fit_32_bits_below_the_limit(rows, groups, packs):
    p = plan(rows, groups, packs, 160, 2048)
    row, stride = groups * packs, p.parts * (p.block // (p.group_tile * p.lanes)) * p.lanes
    step, gap = stride // packs * row + stride % packs, row - packs
    assert (
        rows * row < katlib.cuda.WIDE
        and rows * row + step + gap < 2**31
        and 2 * packs + stride < 2**31
    )
    assert p.tiles < 2**31 and p.parts <= 65535


def test_the_load_is_as_wide_as_span_and_addresses_allow():
    assert [vector_width(span, 2, 0) for span in (24, 12, 6, 7)] == [8, 4, 2, 1]
    assert [vector_width(4096, 2, address) for address in (0, 256, 8, 4, 2)] == [8, 8, 4, 2, 1]
    assert vector_width(24, 2, 0, 4) == 2 and vector_width(24, 4) == 4 and vector_width(24, 8) == 2


# A libcuda with the real functions' signatures (cuda.h) that writes down what it is asked for. Everything else in `jit` is the real thing.
LIBCUDA = r"""
#include <stdio.h>
#include <string.h>
#include <stddef.h>
extern "C" {
char record[4096];                                  // what happened, a line for each call
char buffer[256];                                   // the last launch's arguments
static void *context;
static void note(const char *format, ...) { va_list list; va_start(list, format); vsnprintf(record + strlen(record), 400, format, list); va_end(list); }
int cuDeviceGet(int *device, int ordinal) { *device = 10 + ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = (void *)(0x7fff00000000 + device); return 0; }
int cuCtxPushCurrent_v2(void *c) { context = c; return 0; }
int cuCtxPopCurrent_v2(void **c) { *c = context; context = 0; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)0x7fff10000000; note("load %.4s in %p\n", (const char *)image, context); return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)((char *)module + strlen(name));
    return strncmp(name, "rational", 8) ? 500 : 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) { *blocks = shared ? 0 : 1024 / threads; return 0; }
int cuGetErrorString(int status, const char **text) { *text = "named symbol not found"; return 0; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                   void **parameters, void **extra) {
    if (parameters || extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4]) return 1;
    size_t size = *(size_t *)extra[3];
    memcpy(buffer, extra[1], size);
    note("launch %p grid %u %u %u block %u %u %u shared %u stream %p size %zu in %p\n", function, gx, gy, gz, bx, by, bz, shared, stream, size, context);
    return 0;
}
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_what_reaches_the_driver(monkeypatch, tmp_path):
    """Through the real ctypes calls: context, function, grid, block, stream, and the bytes of the arguments."""
    (tmp_path / "cuda.cpp").write_text("#include <stdarg.h>\n" + LIBCUDA)
    subprocess.run(
        ["g++", "-shared", "-fPIC", tmp_path / "cuda.cpp", "-o", tmp_path / "libcuda.so"],
        check=True,
    )
    monkeypatch.setattr(jit, "LIBCUDA", str(tmp_path / "libcuda.so"))
    monkeypatch.setattr(jit, "_driver", functools.cache(jit._driver.__wrapped__))
    libcuda = jit._driver()
    record, buffer = (
        (ctypes.c_char * size).in_dll(libcuda, name)
        for size, name in ((4096, "record"), (256, "buffer"))
    )
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: types.SimpleNamespace(multi_processor_count=132),
    )
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda index: types.SimpleNamespace(cuda_stream=0x7FFF20000000 + index),
    )
    module = jit.Module(b"code", 1)
    monkeypatch.setattr(jit, "load", lambda source, definitions, index: module)

    x, a, b = (
        torch.randn(394, 8, 24),
        torch.randn(1, 6),
        torch.randn(8, 4),
    )  # all groups share the numerator
    y = katlib.cuda.forward(x, a, b)
    assert (
        record.value.decode().splitlines()
        == [  # 4 rows of 48 packs in a block; 16 is the length of the name
            "load code in 0x7fff0000000b",
            "launch 0x7fff10000010 grid 1 99 1 block 192 1 1 shared 0 stream 0x7fff20000001 size 60 in 0x7fff0000000b",
        ]
    )
    assert struct.unpack("PPPPiiiiiii", buffer.raw[:60]) == (
        x.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        y.data_ptr(),
        394,
        8,
        6,
        8,
        1,
        8,
        6,
    )

    record.value = b""
    dx, da, db = katlib.cuda.backward(y, x, a, b)
    assert record.value.decode().splitlines() == [
        "launch 0x7fff10000011 grid 1 99 1 block 192 1 1 shared 0 stream 0x7fff20000001 size 76 in 0x7fff0000000b",
        "launch 0x7fff1000000f grid 38 1 1 block 256 1 1 shared 0 stream 0x7fff20000001 size 48 in 0x7fff0000000b",
    ]
    assert struct.unpack("PPPPiiii", buffer.raw[:48])[1:] == (
        b.data_ptr(),
        da.data_ptr(),
        db.data_ptr(),
        8,
        1,
        6,
        99,
    )
    assert da.shape == (1, 6) and db.shape == (8, 4)

    with pytest.raises(RuntimeError, match="named symbol not found"):
        module.threads("another")


def test_wrong_tensors_do_not_reach_the_kernel():
    x, a, b = torch.randn(4, 2, 8), torch.randn(2, 6), torch.randn(2, 4)
    for arguments in [
        (x.double(), a, b),
        (x.int(), a, b),
        (x.half(), a.half(), b.half()),
        (x, torch.randn(3, 6), b),
        (x, a, torch.randn(4, 4)),
        (x, a[:0], b),
        (x[0], a, b),
        (x[0], a[:1], b[:1]),
        (x, a[0], b),
        (x, a[:, :0], b),
        (x, torch.randn(2, 10), b),
        (x, a, torch.randn(2, 9)),
        (x.transpose(0, 2), a, b),
        (x[:, :, ::2], a, b),
        (x, a.to("meta"), b),
    ]:
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
    before = locale.getpreferredencoding(False)
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void kernel() { nonsense; }")
    with pytest.raises(RuntimeError, match="wrong.cu(.|\n)*nonsense"):
        jit.compile(source, {}, 90)
    source.write_text('extern "C" __global__ void kernel(int *p) { *p = VALUE; }')
    assert jit.compile(source, {"VALUE": 3}, 90)[:4] == b"\x7fELF"
    assert b".target sm_" in jit.compile(
        source, {"VALUE": 3}, 999
    )  # newer than NVRTC: PTX, which the driver compiles
    assert locale.getpreferredencoding(False) == before
