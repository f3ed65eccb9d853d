"""The kernel of the ladder in Triton, in Triton's interpreter and compiled for a GPU."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from katlib.book.ladder import triton_kernels

pytestmark = pytest.mark.skipif(not find_spec("triton"), reason="there is no triton")


@pytest.mark.slow
def test_the_interpreter_has_the_gradients_of_float64():
    program = [sys.executable, "-m", "katlib.cuda.ladder.in_triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    errors = re.findall(r"^(\w+): largest error (\S+)", done.stdout, re.M)
    assert [name for name, _ in errors] == ["dx", "da", "db"]
    assert max(float(error) for _, error in errors) < 1e-6


@pytest.mark.slow
def test_it_compiles_for_an_h100():
    kernels = triton_kernels()
    if not kernels:
        pytest.skip("there is no cuobjdump")
    # as few as stage 6 needs in CUDA, and within bfloat16's 60
    assert all(45 < kernel.instructions < 60 for kernel in kernels)
    assert all(kernel.registers > 100 and not kernel.spills for kernel in kernels)
