"""The machine code that NVRTC makes of rational.cu, for all generations of GPUs, read without one: the kernel's budget (`make sass`)."""

import pytest
import torch

from katlib.cuda import jit, sass

try:
    jit._nvrtc()
    missing = "" if sass.cuobjdump() else "cuobjdump (in the triton wheel) was not found"
except OSError as error:
    missing = str(error)
pytestmark = pytest.mark.skipif(bool(missing), reason=missing or "-")


@pytest.mark.parametrize("arch", sass.ARCHS)
@pytest.mark.parametrize("dtype", sass.TYPES, ids=str)
def test_compiles_everywhere_without_spills(dtype, arch):
    if arch not in jit.architectures():
        pytest.skip(f"NVRTC of CUDA {torch.version.cuda} does not know sm_{arch}")
    kernels, seconds = sass.measure(dtype, arch)
    assert set(kernels) == {"rational_forward", "rational_backward", "rational_finish"}
    assert (
        all(kernel.spills == 0 for kernel in kernels.values())
        and kernels["rational_backward"].shared <= 48 * 1024
    )
    assert (
        seconds < 20
    )  # the reader's first wait; under one second on a quiet machine, but the one that tests may be busy


def test_the_budget():
    """bfloat16, degrees (5, 4), H100: the memory leaves time for some 39 instructions an element forward and 59 backward."""
    kernels, _ = sass.measure(torch.bfloat16, 90)
    forward, backward = kernels["rational_forward"], kernels["rational_backward"]
    assert (
        forward.instructions <= 16 and forward.registers <= 32
    )  # 2048 threads on a multiprocessor, all that it can hold
    assert backward.instructions <= 50 and backward.registers <= 64  # 1024


@pytest.mark.parametrize("degrees", [(0, 0), (3, 2), (7, 6), (8, 2), (2, 8), (8, 8)], ids=str)
@pytest.mark.parametrize("width, wide", [(1, False), (0, True)])
def test_no_variant_spills(degrees, width, wide):
    kernels, _ = sass.measure(torch.bfloat16, 90, degrees, width, wide)
    assert all(kernel.spills == 0 for kernel in kernels.values())


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
