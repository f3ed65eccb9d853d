"""The kernel's budget: the machine code that NVRTC makes of rational.cu, for all GPUs.

Nothing here needs a GPU; `make sass` prints the numbers.
"""

import functools
import math

import pytest
import torch

from katlib.cuda import jit, sass

try:
    jit.nvrtc()
    missing = "" if sass.cuobjdump() else "cuobjdump (in the triton wheel) was not found"
except OSError as error:
    missing = str(error)
needs_the_tools = pytest.mark.skipif(bool(missing), reason=missing or "-")

H100 = 90
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
    """An H100's memory leaves time for some 59 instructions an element in bfloat16."""
    assert backward(torch.bfloat16).instructions <= 50
    # 1024 threads on a multiprocessor
    assert backward(torch.bfloat16).registers <= 64


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
