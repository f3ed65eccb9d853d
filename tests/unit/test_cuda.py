"""The host side of the CUDA backend, without a GPU.

Which variant is chosen, how it is launched, what reaches the driver, which tensors are refused.
"""

import ctypes
import functools
import itertools
import locale
import shutil
import struct
import subprocess
import sys
import types
import warnings

import pytest
import torch

import katlib
import katlib.cuda
from katlib.cuda import compiler, definitions, driver, jit, ladder, plan, sass, vector_width

# rows, groups, packs
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
]


def walk(p, rows, groups, packs):
    """The offsets of the packs that each thread visits, as in rational.cu's `Walk`."""
    columns = p.group_tile * p.lanes
    row, slots = groups * packs, p.block // columns
    stride = p.parts * slots * p.lanes
    for tile, part, thread in itertools.product(range(p.tiles), range(p.parts), range(p.block)):
        slot = thread // columns
        group = tile * p.group_tile + thread // p.lanes % p.group_tile
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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("multiprocessors, threads", [(1, 256), (3, 1024)])
def test_a_block_is_whole_warps_and_has_room_for_its_columns(shape, multiprocessors, threads):
    p = plan(*shape, multiprocessors, threads)
    assert p.block % 32 == 0
    assert p.group_tile * p.lanes <= p.block <= jit.THREADS


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
    assert rows * row < katlib.cuda.WIDE
    assert rows * row + step + gap < 2**31
    assert 2 * packs + stride < 2**31
    # what a launch's grid allows
    assert p.tiles < 2**31 and p.parts <= 65535


@pytest.mark.parametrize("span, width", [(24, 8), (12, 4), (6, 2), (7, 1)])
def test_the_load_is_as_wide_as_the_span_allows(span, width):
    assert vector_width(span, 2, 0) == width


@pytest.mark.parametrize("address, width", [(0, 8), (256, 8), (8, 4), (4, 2), (2, 1)])
def test_the_load_is_as_wide_as_the_address_allows(address, width):
    assert vector_width(4096, 2, address) == width


def test_the_load_is_as_wide_as_the_worst_address_allows():
    assert vector_width(24, 2, 0, 4) == 2


@pytest.mark.parametrize("itemsize, width", [(2, 8), (4, 4), (8, 2)])
def test_a_load_has_16_bytes_at_most(itemsize, width):
    assert vector_width(24, itemsize) == width


@pytest.mark.parametrize(
    "asked, macros",
    [
        ({}, set()),
        ({"input_gradient": False}, {("INPUT_GRADIENT", "false")}),
        ({"coefficient_gradients": False}, {("COEFFICIENT_GRADIENTS", "false")}),
    ],
)
def test_the_variant_for_one_gradient_differs_by_one_macro(asked, macros):
    """The full variant names neither, so forward and backward share one compiled module."""
    tensors = torch.empty(0, 1, 4), torch.empty(1, 6), torch.empty(1, 4)
    full = definitions(*tensors, width=4, wide=False)
    assert set(definitions(*tensors, width=4, wide=False, **asked)) - set(full) == macros


# ---- The driver

# A libcuda with the signatures of the real functions (cuda.h), which writes down what it is asked
# for. Everything else in `driver` is the real thing.
LIBCUDA = r"""
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
extern "C" {
// what happened, a line for each call
char record[4096];
// the arguments of the last launch
char buffer[256];
void *context;
static void note(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(record + strlen(record), 400, format, list);
    va_end(list);
}
int cuDeviceGet(int *device, int ordinal) { *device = 10 + ordinal; return 0; }
int cuDevicePrimaryCtxRetain(void **made, int device) {
    *made = (void *)(0x7fff00000000 + device);
    return 0;
}
int pushes;
int cuCtxPushCurrent_v2(void *c) { context = c; pushes++; return 0; }
int cuCtxGetCurrent(void **c) { *c = context; return 0; }
int cuCtxPopCurrent_v2(void **c) { *c = context; context = 0; return 0; }
int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)0x7fff10000000;
    note("load %.4s in %p\n", (const char *)image, context);
    return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)((char *)module + strlen(name));
    note("fetch %s in %p\n", name, context);
    return strncmp(name, "rational", 8) ? 500 : 0;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads,
                                                size_t shared) {
    *blocks = shared ? 0 : 1024 / threads;
    return 0;
}
int cuGetErrorString(int status, const char **text) {
    *text = "named symbol not found";
    return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **parameters, void **extra) {
    if (parameters || extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4]) return 1;
    size_t size = *(size_t *)extra[3];
    memcpy(buffer, extra[1], size);
    note("launch %p grid %u %u %u block %u %u %u ", function, gx, gy, gz, bx, by, bz);
    note("shared %u stream %p size %zu in %p\n", shared, stream, size, context);
    return 0;
}
}
"""
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


# What names the kernels in a cubin: a section for each, more than once.
KERNELS = ["rational_backward", "rational_finish", "rational_forward"]
CODE = b"code\0" + b"".join(f".text.{name}\0.rel.text.{name}\0".encode() for name in KERNELS)


class Recorder:
    """The fake libcuda: what it was asked for, and a module loaded by it."""

    def __init__(self, library):
        self.record = (ctypes.c_char * 4096).in_dll(library, "record")
        self.buffer = (ctypes.c_char * 256).in_dll(library, "buffer")
        self.context = ctypes.c_void_p.in_dll(library, "context")
        self.pushes = ctypes.c_int.in_dll(library, "pushes")
        self.module = driver.Module(CODE, 1)
        self.loading = self.lines()

    def lines(self):
        """The calls since the last time that this was asked."""
        lines = self.record.value.decode().splitlines()
        self.record.value = b""
        return lines

    def arguments(self, layout):
        """The arguments of the last launch."""
        return struct.unpack(layout, self.buffer.raw[: struct.calcsize(layout)])


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    source, library = tmp_path / "cuda.cpp", tmp_path / "libcuda.so"
    source.write_text(LIBCUDA)
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    monkeypatch.setattr(driver, "LIBCUDA", str(library))
    monkeypatch.setattr(driver, "_driver", functools.cache(driver._driver.__wrapped__))
    properties = types.SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    def current_stream(index):
        return types.SimpleNamespace(cuda_stream=0x7FFF20000000 + index)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    recorder = Recorder(driver._driver())
    monkeypatch.setattr(jit, "load", lambda source, definitions, index: recorder.module)
    return recorder


@pytest.fixture
def tensors():
    """g, x, a, b and the shape; all groups share the numerator."""
    g, x = torch.randn(2, 394, 8, 24)
    return g, x, torch.randn(1, 6), torch.randn(8, 4), (394, 8, 24)


# Functions have the module's address plus the length of their name. A block has 4 rows of 48 packs.
BACKWARD = (
    "launch 0x7fff10000011 grid 1 99 1 block 192 1 1 "
    "shared 0 stream 0x7fff20000001 size 76 in 0x7fff0000000b"
)
FINISH = (
    "launch 0x7fff1000000f grid 38 1 1 block 256 1 1 "
    "shared 0 stream 0x7fff20000001 size 48 in 0x7fff0000000b"
)


@needs_compiler
def test_what_reaches_the_driver_forward(recorder, tensors):
    """Through the real ctypes calls: context, function, grid, block, stream."""
    _, x, a, b, shape = tensors
    katlib.cuda.forward(x, a, b, shape)
    assert recorder.lines() == [
        "launch 0x7fff10000010 grid 1 99 1 block 192 1 1 "
        "shared 0 stream 0x7fff20000001 size 60 in 0x7fff0000000b",
    ]


@needs_compiler
def test_the_bytes_of_the_arguments_forward(recorder, tensors):
    _, x, a, b, shape = tensors
    y = katlib.cuda.forward(x, a, b, shape)
    pointers = tuple(t.data_ptr() for t in (x, a, b, y))
    assert recorder.arguments("PPPPiiiiiii") == (*pointers, 394, 8, 6, 8, 1, 8, 6)


@needs_compiler
def test_loading_fetches_every_kernel(recorder):
    """A first backward may be captured in a CUDA graph, where nothing can be fetched."""
    assert recorder.loading == [
        "load code in 0x7fff0000000b",
        *(f"fetch {name} in 0x7fff0000000b" for name in KERNELS),
    ]


@needs_compiler
@pytest.mark.parametrize(
    "asked, launches",
    [
        ((True, True), [BACKWARD, FINISH]),
        ((False, True), [BACKWARD, FINISH]),
        ((True, False), [BACKWARD]),
        ((False, False), []),
    ],
)
def test_what_reaches_the_driver_backward(recorder, tensors, asked, launches):
    katlib.cuda.backward(*tensors, *asked)
    assert recorder.lines() == launches


@needs_compiler
def test_the_bytes_of_the_arguments_backward(recorder, tensors):
    g, x, a, b, _ = tensors
    dx, _, _ = katlib.cuda.backward(*tensors, coefficient_gradients=False)
    pointers = tuple(t.data_ptr() for t in (g, x, a, b, dx))
    # no room for partial sums: a null pointer
    assert recorder.arguments("PPPPPPiiiiiii") == (*pointers, 0, 394, 8, 6, 8, 1, 8, 6)


@needs_compiler
@pytest.mark.parametrize("input_gradient", [True, False])
def test_the_bytes_of_the_arguments_finish(recorder, tensors, input_gradient):
    _, _, a, b, _ = tensors
    _, da, db = katlib.cuda.backward(*tensors, input_gradient)
    pointers = tuple(t.data_ptr() for t in (b, da, db))
    assert recorder.arguments("PPPPiiii")[1:] == (*pointers, 8, 1, 6, 99)
    assert da.shape == a.shape == (1, 6)
    assert db.shape == b.shape == (8, 4)


@needs_compiler
def test_an_error_of_the_driver_is_raised(recorder):
    with pytest.raises(RuntimeError, match="named symbol not found"):
        driver.Module(b"code\0.text.another\0", 1)


PRIMARY_CONTEXT, ANOTHER_CONTEXT = 0x7FFF0000000B, 0x7FFF00000001


@needs_compiler
@pytest.mark.parametrize("current, pushes", [(PRIMARY_CONTEXT, 0), (ANOTHER_CONTEXT, 1), (None, 1)])
def test_a_context_that_is_current_is_not_pushed(recorder, tensors, current, pushes):
    _, *others = tensors
    recorder.context.value, recorder.pushes.value = current, 0
    katlib.cuda.forward(*others)
    assert recorder.pushes.value == pushes
    assert recorder.lines()[0].endswith("in 0x7fff0000000b")


# ---- What a call costs the host


class Calls:
    """Counts the functions that katlib's code calls: what a call costs the host, whatever else the
    machine does."""

    def __init__(self):
        self.count = 0

    def __call__(self, frame, event, argument):
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE):
            self.count += 1


PACKAGE = str(katlib.cuda.SOURCE.parents[1])


def count_calls(function):
    """The calls of a function that has run before."""
    function()
    calls, before = Calls(), sys.getprofile()
    sys.setprofile(calls)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls.count


@pytest.fixture
def through_the_operator(recorder, monkeypatch):
    """`katlib.rational` of CPU tensors goes to the CUDA backend."""
    for name in ("forward", "backward"):
        monkeypatch.setattr(katlib.cpu, name, getattr(katlib.cuda, name))
    return recorder


@needs_compiler
def test_the_budget_of_a_call_of_forward(through_the_operator, tensors):
    """Of all of it, from katlib.rational to the driver."""
    _, x, a, b, _ = tensors
    x = x.flatten(1)
    assert count_calls(lambda: katlib.rational(x, a, b)) <= 60
    assert "launch" in through_the_operator.lines()[-1]


@needs_compiler
def test_the_budget_of_a_call_of_backward(through_the_operator, tensors):
    g, *leaves, _ = (t.flatten(1) if torch.is_tensor(t) else t for t in tensors)
    y = katlib.rational(*(t.requires_grad_() for t in leaves))
    gradients = functools.partial(torch.autograd.grad, y, leaves, g, retain_graph=True)
    assert count_calls(gradients) <= 80
    assert "launch" in through_the_operator.lines()[-1]


@needs_compiler
def test_tensors_of_one_kind_are_checked_once(recorder, tensors, monkeypatch):
    checked = []
    monkeypatch.setattr(katlib.cuda, "_check", lambda *arguments: checked.append(arguments))
    for _ in range(3):
        katlib.cuda.forward(*tensors[1:])
        katlib.cuda.backward(*tensors)
    assert len(checked) == 2


@needs_compiler
def test_a_misaligned_tensor_is_of_another_kind(recorder, tensors):
    """Its packs are narrower: 2 of its 24 channels and not 4, so it has 12 packs and not 6."""
    _, x, a, b, shape = tensors
    shifted = torch.empty(x.numel() + 2)[2:].view_as(x)
    packs = []
    for t in (x, shifted, x):
        katlib.cuda.forward(t, a, b, shape)
        packs.append(recorder.arguments("PPPPiiiiiii")[6])
    assert packs == [6, 12, 6]


@needs_compiler
def test_what_was_prepared_is_forgotten_before_it_is_too_much(recorder, monkeypatch):
    monkeypatch.setattr(katlib.cuda, "MOST_PREPARED", 5)
    a, b = torch.randn(1, 6), torch.randn(1, 4)
    for rows in range(1, 20):
        katlib.cuda.forward(torch.randn(rows, 8), a, b, (rows, 1, 8))
    assert len(katlib.cuda._prepared) <= 5
    assert len(recorder.lines()) == 19


# ---- Wrong tensors


def good():
    """x, a, b that fit the shape (4, 2, 8)."""
    return torch.randn(4, 2, 8), torch.randn(2, 6), torch.randn(2, 4)


WRONG = {
    "coefficients of another type than float64": lambda x, a, b: (x.double(), a, b),
    "integers": lambda x, a, b: (x.int(), a, b),
    "half coefficients": lambda x, a, b: (x.half(), a.half(), b.half()),
    "rows of a that do not divide the groups": lambda x, a, b: (x, torch.randn(3, 6), b),
    "more rows of b than groups": lambda x, a, b: (x, a, torch.randn(4, 4)),
    "no rows of a": lambda x, a, b: (x, a[:0], b),
    "too few elements": lambda x, a, b: (x[0], a, b),
    "too few elements for one row": lambda x, a, b: (x[0], a[:1], b[:1]),
    "a of one dimension": lambda x, a, b: (x, a[0], b),
    "no columns of a": lambda x, a, b: (x, a[:, :0], b),
    "too high a numerator": lambda x, a, b: (x, torch.randn(2, 10), b),
    "too high a denominator": lambda x, a, b: (x, a, torch.randn(2, 9)),
    "elements left out": lambda x, a, b: (torch.randn(4, 2, 16)[:, :, ::2], a, b),
    "elements repeated": lambda x, a, b: (x[:1].expand(4, 2, 8), a, b),
    "a transposed": lambda x, a, b: (x, torch.randn(6, 2).T, b),
    "b on another device": lambda x, a, b: (x, a, b.to("meta")),
    "a on another device": lambda x, a, b: (x, a.to("meta"), b),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_tensors_do_not_reach_the_kernel(wrong):
    with pytest.raises(ValueError, match="given: torch"):
        katlib.cuda.forward(*WRONG[wrong](*good()), (4, 2, 8))


@needs_compiler
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_tensors_are_refused_after_good_ones_too(recorder, wrong):
    katlib.cuda.forward(*good(), (4, 2, 8))
    with pytest.raises(ValueError, match="given: torch"):
        katlib.cuda.forward(*WRONG[wrong](*good()), (4, 2, 8))
    assert len(recorder.lines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x[:2],
        lambda x: x.double(),
        lambda x: x[:1].expand(4, 2, 8),
        lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
        lambda x: x.to("meta"),
    ],
    ids=["shape", "type", "repeated", "strides", "device"],
)
def test_wrong_gradients_do_not_reach_the_kernel(wrong):
    x, a, b = good()
    with pytest.raises(ValueError, match=r"g must have the .* of x; given: torch"):
        katlib.cuda.backward(wrong(x), x, a, b, (4, 2, 8))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("too few elements", r"rows \* G \* span = 4 \* 2 \* 8"),
        ("elements left out", "x must be contiguous, or a permutation"),
        ("rows of a that do not divide the groups", "rows of a must divide the 2 groups"),
        ("too high a denominator", "b must have two dimensions and 0 to 8 columns"),
    ],
)
def test_the_message_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        katlib.cuda.forward(*WRONG[wrong](*good()), (4, 2, 8))


# ---- The ladder


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, a, b: (x.double(), a, b),
        lambda x, a, b: (x, a.double(), b),
        lambda x, a, b: (x, a, b.half()),
        lambda x, a, b: (x[:0], a, b),
    ],
    ids=["float64", "a of float64", "b of float16", "empty"],
)
def test_the_ladder_refuses_types_it_does_not_have(wrong):
    with pytest.raises(ValueError, match="the ladder is for float16, bfloat16 and float32"):
        ladder.forward(*wrong(*good()))


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x[:2], lambda x: x.half(), lambda x: x[:1].expand(4, 2, 8), lambda x: x.to("meta")],
    ids=["shape", "type", "strides", "device"],
)
def test_the_ladder_refuses_gradients_that_are_not_like_x(wrong):
    x, a, b = good()
    with pytest.raises(ValueError, match="x and g alike"):
        ladder.backward("stage3_registers", wrong(x), x, a, b)


def test_the_ladder_refuses_tensors_that_are_too_large_for_its_offsets():
    x, (a, b) = torch.empty(2**29, 1, 1, dtype=torch.bfloat16, device="meta"), good()[1:]
    with pytest.raises(ValueError, match=r"fewer than 2\^29 elements; given: 536,870,912"):
        ladder.forward(x, a, b)


def test_the_ladder_names_its_stages():
    x, a, b = good()
    with pytest.raises(ValueError, match=r"stage='stage6' is not known.*stage1_global_atomics"):
        ladder.backward("stage6", x, x, a, b)


# ---- Whether the backend can be used


@pytest.fixture
def fresh(monkeypatch):
    """katlib.cuda as in a new process."""
    monkeypatch.setattr(katlib.cuda, "_loaded", False)
    monkeypatch.setattr(katlib.cuda, "_failed_at", None)
    katlib.cuda._warn.cache_clear()


@pytest.fixture
def device(fresh, monkeypatch):
    """A device for which loading fails while `errors` has entries; gives these."""
    errors = []

    def load(*arguments):
        if errors:
            raise errors[-1]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(jit, "load", load)
    return errors


def test_without_a_device_it_is_silent(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not katlib.cuda.available()


@pytest.mark.parametrize("retry_seconds", [60.0, 0.0])
def test_a_device_without_a_compiler_warns_once(device, monkeypatch, retry_seconds):
    monkeypatch.setattr(katlib.cuda, "RETRY_SECONDS", retry_seconds)
    device.append(OSError("NVRTC was not found"))
    with pytest.warns(UserWarning, match="NVRTC was not found"):
        assert not katlib.cuda.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not katlib.cuda.available()


@pytest.mark.filterwarnings("ignore:katlib's CUDA kernel cannot be used")
def test_a_failure_is_forgotten_after_a_while(device, monkeypatch):
    device.append(RuntimeError("CUDA: out of memory (2)"))
    assert not katlib.cuda.available()
    device.clear()
    assert not katlib.cuda.available()
    monkeypatch.setattr(katlib.cuda, "RETRY_SECONDS", 0.0)
    assert katlib.cuda.available()


def test_what_was_loaded_once_stays_available(device):
    assert katlib.cuda.available()
    device.append(RuntimeError("asked again"))
    assert katlib.cuda.available()


@pytest.mark.parametrize("missing", ["nvrtc", "_headers"])
def test_the_missing_part_of_cuda_is_named(monkeypatch, missing):
    def cannot_load(name):
        raise OSError(name)

    monkeypatch.setattr(compiler, "_find", lambda *patterns: [])
    monkeypatch.setattr(compiler.ctypes, "CDLL", cannot_load)
    with pytest.raises(OSError, match="was not found"):
        getattr(compiler, missing).__wrapped__()


def test_installations_include_what_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert tmp_path in compiler._installations()


# ---- The compiler


def has_compiler():
    try:
        return bool(jit.nvrtc() and compiler._headers())
    except OSError:
        return False


needs_nvrtc = pytest.mark.skipif(not has_compiler(), reason="there is no NVRTC here")


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void kernel(int *p) { *p = VALUE; }')
    return source


@needs_nvrtc
def test_the_error_names_the_source_and_quotes_the_compiler(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void kernel() { nonsense; }")
    with pytest.raises(RuntimeError, match=r"wrong.cu(.|\n)*nonsense"):
        jit.compile(source, {}, 90)


@needs_nvrtc
def test_a_known_device_gets_machine_code(source):
    assert jit.compile(source, {"VALUE": 3}, 90)[:4] == b"\x7fELF"


@needs_nvrtc
def test_a_device_newer_than_nvrtc_gets_ptx(source):
    """The driver then compiles it."""
    assert b".target sm_" in jit.compile(source, {"VALUE": 3}, 999)


@needs_nvrtc
@pytest.mark.parametrize("arch", [90, 999], ids=["machine code", "PTX"])
def test_compiled_code_names_its_kernels(arch):
    tensors = torch.empty(0, 1, 4), torch.empty(1, 9), torch.empty(1, 9)
    macros = dict(definitions(*tensors, width=4, wide=False))
    code = jit.compile(katlib.cuda.SOURCE, macros, arch)
    assert driver.kernel_names(code) == KERNELS


@needs_nvrtc
@pytest.mark.skipif(not sass.cuobjdump(), reason="there is no cuobjdump here")
def test_the_finish_has_eight_loads_in_flight(tmp_path):
    """It loads eight partial sums before it adds the first."""
    x = torch.empty(0, 1, 4, dtype=torch.bfloat16)
    macros = dict(definitions(x, torch.empty(1, 6), torch.empty(1, 4), width=2, wide=False))
    cubin = tmp_path / "rational.cubin"
    cubin.write_bytes(jit.compile(katlib.cuda.SOURCE, macros, 90))
    code = subprocess.check_output([sass.cuobjdump(), "--dump-sass", cubin], text=True)
    finish = code.split("Function : rational_finish")[1].split("Function : ")[0]
    before_the_first_addition = finish.split("DADD")[0]
    assert before_the_first_addition.count("LDG") == 8


@needs_nvrtc
def test_compiling_leaves_the_locale_as_it_was(source):
    before = locale.getpreferredencoding(False)
    jit.compile(source, {"VALUE": 3}, 90)
    assert locale.getpreferredencoding(False) == before
