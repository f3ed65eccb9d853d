"""The kernel's budget: the machine code that NVRTC makes of rational.cu, for all GPUs.

Nothing here needs a GPU; `make sass` prints the numbers.
"""

import functools
import math
import re
import struct
import subprocess
import tempfile

import pytest
import torch

import katlib.cuda
from katlib.cuda import SOURCE, definitions, jit, ladder, sass, vector_width

try:
    jit.nvrtc()
    missing = "" if sass.cuobjdump() else "cuobjdump (in the triton wheel) was not found"
except OSError as error:
    missing = str(error)
needs_the_tools = pytest.mark.skipif(bool(missing), reason=missing or "-")

H100 = 90
# where the ladder is
FOLDER = SOURCE.parent / "ladder"
# what rational_backward computes: input_gradient, coefficient_gradients
INPUT_ALONE, COEFFICIENTS_ALONE = (True, False), (False, True)


@functools.cache
def backward(dtype, input_gradient=True, coefficient_gradients=True):
    """rational_backward for degrees (5, 4) and the H100."""
    asked = {"input_gradient": input_gradient, "coefficient_gradients": coefficient_gradients}
    return sass.measure(dtype, H100, **asked)[0]["rational_backward"]


@needs_the_tools
@pytest.mark.parametrize("arch", sass.ARCHS)
@pytest.mark.parametrize("dtype", sass.TYPES, ids=str)
def test_compiles_everywhere_without_spills(dtype, arch):
    if arch not in jit.architectures():
        pytest.skip(f"NVRTC of CUDA {torch.version.cuda} does not know sm_{arch}")
    kernels, seconds = sass.measure(dtype, arch)
    assert set(kernels) == {"rational_forward", "rational_backward", "rational_finish"}
    assert all(kernel.spills == 0 for kernel in kernels.values())
    assert kernels["rational_backward"].shared <= 48 * 1024
    # the reader's first wait; under a second on a quiet machine, but the tests' may be busy
    assert seconds < 20


@needs_the_tools
def test_the_budget_of_forward():
    """An H100's memory leaves time for some 39 instructions an element in bfloat16."""
    forward = sass.measure(torch.bfloat16, H100)[0]["rational_forward"]
    assert forward.instructions <= 16
    # 2048 threads on a multiprocessor, all that it can hold
    assert forward.registers <= 32


@needs_the_tools
def test_the_budget_of_backward():
    """An H100's memory leaves time for some 59 instructions an element in bfloat16, and an H200's
    for 44."""
    assert backward(torch.bfloat16).instructions <= 45.5
    assert backward(torch.float32).instructions <= 44.5
    # 1024 threads on a multiprocessor
    assert max(backward(dtype).registers for dtype in (torch.bfloat16, torch.float32)) <= 64


# what computes in double
DOUBLE = re.compile(r"\bD(ADD|MUL|FMA|SETP)\b|\bF2F\.F\d\d\.F64|\bF2F\.F64|RCP64")


@functools.cache
def compiled(dtype, degrees=(5, 4), wide=False):
    m, n = degrees
    x = torch.empty(0, 1, 1, dtype=dtype)
    width = vector_width(16, dtype.itemsize)
    macros = definitions(x, torch.empty(1, m + 1), torch.empty(1, n), width, wide)
    return jit.compile(SOURCE, dict(macros), H100)


@functools.cache
def listing(dtype, degrees=(5, 4)):
    """The machine code of each kernel, as cuobjdump prints it."""
    text = dumped(compiled(dtype, degrees), "--dump-sass")
    return {part.split()[0]: part for part in text.split("Function : ")[1:]}


def dumped(cubin, option):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.check_output([sass.cuobjdump(), option, file.name], text=True)


FORWARD_AND_BACKWARD = ("rational_forward", "rational_backward")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@needs_the_tools
@pytest.mark.parametrize("kernel", FORWARD_AND_BACKWARD)
@pytest.mark.parametrize("degrees", [(5, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("dtype", sass.TYPES, ids=str)
def test_the_main_loop_loads_and_stores_16_bytes_at_once(dtype, degrees, kernel):
    loop = sass.main_loop(listing(dtype, degrees)[kernel])
    loads, stores = ([text for text in loop if name in text] for name in ("LDG", "STG"))
    assert len(loads) == (1 if kernel == "rational_forward" else 2)
    assert len(stores) == 1
    assert all(".128" in text for text in loads + stores)


@needs_the_tools
@pytest.mark.parametrize("kernel", FORWARD_AND_BACKWARD)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_are_computed_without_doubles(dtype, kernel):
    """A GPU for games has one unit for doubles where it has 64 for floats."""
    assert not DOUBLE.search(listing(dtype)[kernel])


@needs_the_tools
@pytest.mark.parametrize("kernel", FORWARD_AND_BACKWARD)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_of_high_degrees_only_huge_floats_are_computed_in_double(dtype, kernel):
    code = listing(dtype, (8, 8))[kernel]
    assert DOUBLE.search(code)
    assert not any(map(DOUBLE.search, sass.main_loop(code)))


@needs_the_tools
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_both_zeros_get_a_positive_sign(dtype):
    """x + 0 makes +0 of -0. A compiler that took it for x would leave no addition of RZ, 0."""
    loop = sass.main_loop(listing(dtype)["rational_backward"])
    additions = [text for text in loop if re.search(r"FADD.*\bRZ\b", text)]
    assert len(additions) == 16 // dtype.itemsize


# ---- The arguments of a launch


def parameters(cubin):
    """What the machine code expects, by kernel: offset and size of each parameter, in order."""
    found = {}
    for section in dumped(cubin, "--dump-elf").split(".nv.info.")[1:]:
        records = re.findall(r"Ordinal : 0x(\w+)\s+Offset\s+: 0x(\w+)\s+Size\s+: 0x(\w+)", section)
        in_order = sorted(tuple(int(number, 16) for number in record) for record in records)
        if in_order:
            found[section.split()[0]] = [(offset, size) for _, offset, size in in_order]
    return found


def packed(layout):
    """Offset and size of each argument, as `struct` packs them."""
    return [
        (struct.calcsize(layout[: i + 1]) - struct.calcsize(letter), struct.calcsize(letter))
        for i, letter in enumerate(layout)
    ]


class Launches:
    """Stands in for a loaded module, and keeps the layouts with which its kernels are launched."""

    multiprocessors = 2

    def __init__(self):
        self.layouts = {}

    def threads(self, name):
        return 1024

    def launch(self, name, grid, block, layout, *arguments):
        assert len(layout) == len(arguments)
        self.layouts[name] = layout


@pytest.fixture
def launches(monkeypatch):
    launches = Launches()
    monkeypatch.setattr(jit, "load", lambda *arguments: launches)
    return launches


@needs_the_tools
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_arguments_lie_where_the_machine_code_expects_them(monkeypatch, launches, dtype, wide):
    monkeypatch.setattr(katlib.cuda, "WIDE", 0 if wide else 2**29)
    coefficients = torch.promote_types(dtype, torch.float32)
    a, b = torch.ones(1, 6, dtype=coefficients), torch.ones(1, 4, dtype=coefficients)
    x = torch.ones(3, 1, 8, dtype=dtype)
    katlib.cuda.forward(x, a, b, x.shape)
    katlib.cuda.backward(x, x, a, b, x.shape)
    expected = parameters(compiled(dtype, wide=wide))
    assert {name: packed(layout) for name, layout in launches.layouts.items()} == expected


@needs_the_tools
@pytest.mark.parametrize("stage", ladder.STAGES)
def test_arguments_of_the_ladder_lie_where_the_machine_code_expects_them(launches, stage):
    x, a, b = torch.ones(3, 1, 8), torch.ones(1, 6), torch.ones(1, 4)
    macros = ladder.definitions(x, a, b, width=4)
    ladder.backward(stage, x, x, a, b)
    expected = parameters(jit.compile(FOLDER / f"{stage}.cu", macros, H100))
    assert launches.layouts
    for name, layout in launches.layouts.items():
        assert packed(layout) == expected[name]


@needs_the_tools
@pytest.mark.parametrize("stage", ladder.STAGES)
def test_no_stage_of_the_ladder_divides_indices_in_its_loop(stage):
    """A division of integers would be a call out of the loop, or a float reciprocal of its own."""
    x, a, b = torch.ones(3, 1, 8), torch.ones(1, 6), torch.ones(1, 4)
    cubin = jit.compile(FOLDER / f"{stage}.cu", ladder.definitions(x, a, b), H100)
    loop = sass.main_loop(dumped(cubin, "--dump-sass").split("Function : backward")[1])
    assert not any("CALL" in text or "I2F" in text for text in loop)
    # one for 1 / Q
    assert sum("MUFU.RCP" in text for text in loop) == 1


@needs_the_tools
def test_the_budget_of_the_input_gradient_alone():
    alone = backward(torch.bfloat16, *INPUT_ALONE)
    assert alone.instructions <= 30
    assert alone.registers <= 64
    assert alone.shared == 0


@needs_the_tools
def test_the_coefficient_gradients_alone_store_no_elements():
    assert math.isnan(backward(torch.bfloat16, *COEFFICIENTS_ALONE).instructions)


@needs_the_tools
@pytest.mark.parametrize("asked", [INPUT_ALONE, COEFFICIENTS_ALONE], ids=str)
@pytest.mark.parametrize("dtype", sass.TYPES, ids=str)
def test_one_gradient_alone_needs_no_more_registers(dtype, asked):
    alone = backward(dtype, *asked)
    assert alone.spills == 0
    assert alone.registers <= backward(dtype).registers


@needs_the_tools
@pytest.mark.parametrize("degrees", [(0, 0), (3, 2), (7, 6), (8, 2), (2, 8), (8, 8)], ids=str)
@pytest.mark.parametrize("width, wide", [(1, False), (0, True)])
def test_no_variant_spills(degrees, width, wide):
    kernels, _ = sass.measure(torch.bfloat16, H100, degrees, width, wide)
    assert all(kernel.spills == 0 for kernel in kernels.values())


@needs_the_tools
@pytest.mark.parametrize("degrees", [(0, 0), (8, 8)], ids=str)
@pytest.mark.parametrize("asked", [INPUT_ALONE, COEFFICIENTS_ALONE], ids=str)
def test_no_variant_of_one_gradient_spills(degrees, asked):
    kernels, _ = sass.measure(torch.bfloat16, H100, degrees, 0, False, *asked)
    assert all(kernel.spills == 0 for kernel in kernels.values())


@needs_the_tools
@pytest.mark.slow
def test_the_table_has_a_line_for_each_type_and_device(monkeypatch, capsys):
    monkeypatch.setattr(sass, "ARCHS", (H100,))
    sass.main()
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split()[:2] == ["type", "device"]
    assert [line.split()[:2] for line in lines] == [
        [str(dtype).removeprefix("torch."), f"sm_{H100}"] for dtype in sass.TYPES
    ]


def test_the_main_loop_is_found_by_what_it_does():
    text = """
        /*0000*/  LDG.E R0, desc[UR4][R2.64] ;
        /*0010*/  FADD R1, R1, R0 ;
        /*0020*/  @P0 BRA 0x10 ;
        /*0030*/  LDG.E R0, desc[UR4][R2.64] ;
        /*0040*/  NOP ;
        /*0050*/  STG.E desc[UR4][R2.64], R0 ;
        /*0060*/  @!P1 BRA P2, 0x30 ;
        /*0070*/  @P0 BRA 0x0 ;
        /*0080*/  BRA 0x80 ;"""
    assert [line.split()[0] for line in sass.main_loop(text)] == ["LDG.E", "STG.E", "@!P1"]


def test_a_narrower_loop_within_the_main_loop_is_no_part_of_it():
    text = """
        /*0000*/  LDG.E.128 R0, desc[UR4][R2.64] ;
        /*0010*/  STG.E.128 desc[UR4][R2.64], R0 ;
        /*0020*/  LDG.E.U16 R0, desc[UR4][R2.64] ;
        /*0030*/  STG.E.U16 desc[UR4][R2.64], R0 ;
        /*0040*/  @P0 BRA 0x20 ;
        /*0050*/  @P0 BRA 0x0 ;"""
    assert [line.split()[0] for line in sass.main_loop(text)] == ["LDG.E.128", "STG.E.128", "@P0"]


def test_code_without_a_loop_has_no_main_loop():
    assert sass.main_loop("/*0000*/  LDG.E R0, desc[UR4][R2.64] ;\n/*0010*/  EXIT ;") == []


@pytest.mark.parametrize("found", [None, "elsewhere"])
def test_without_triton_there_is_no_disassembler(monkeypatch, tmp_path, found):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(sass, "find_spec", lambda name: Spec if found else None)
    assert sass.cuobjdump() is None


def test_a_missing_disassembler_is_named(monkeypatch):
    monkeypatch.setattr(sass, "cuobjdump", lambda: None)
    with pytest.raises(OSError, match="cuobjdump"):
        sass.inspect(b"", 1)
