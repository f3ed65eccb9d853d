"""What the compiler made of a kernel: registers, spills and instructions per element.

    python -m katlib.cuda.sass

prints a table for degrees (5, 4) with every element type and every generation of GPUs. It needs no
GPU: NVRTC compiles for any device, and `cuobjdump`, which comes with triton and so with torch on
Linux, disassembles the result into SASS, the machine code of NVIDIA's GPUs.
"""

import re
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from . import SOURCE, TYPES, definitions, jit, vector_width

ARCHS = (75, 80, 86, 89, 90, 100, 120)  # T4, A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50


class Kernel(NamedTuple):
    """What one kernel uses."""

    # of a thread
    registers: int
    # bytes of local memory of a thread: its stack and its spilled registers
    spills: int
    # bytes of shared memory of a block
    shared: int
    # for each element in the main loop; nan if the kernel has no loop that stores elements
    instructions: float


def cuobjdump() -> Path | None:
    """Where the disassembler is, or None."""
    triton = find_spec("triton")
    if not triton or not triton.origin:
        return None
    path = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return path if path.exists() else None


def _widest_store(body: list[str]) -> int:
    """The bits that the widest store to global memory writes; 0 if there is none."""
    widths = {"U8": 8, "U16": 16, "64": 64, "128": 128}
    stores = [text.split("STG")[1].split()[0].split(".") for text in body if "STG" in text]
    return max((widths.get(parts[-1], 32) for parts in stores), default=0)


def main_loop(sass: str) -> list[str]:
    """The instructions of the loop that loads from global memory and stores to it.

    Of several it is the innermost of those with the widest stores. What loads and stores in a loop
    within it (huge elements, one at a time) is left out. So is code out of line, to which the loop
    jumps and from which it is jumped back into.

    Args:
        sass: one kernel, as cuobjdump prints it.
    """
    code = [
        (int(address, 16), instruction)
        for address, instruction in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass)
        if not re.match(r"NOP\b", instruction)
    ]
    loops: list[dict[int, str]] = []
    for end, instruction in code:
        # a loop ends with a jump backwards
        jump = re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", instruction)
        if not jump or int(jump[1], 16) >= end:
            continue
        body = {address: text for address, text in code if int(jump[1], 16) <= address <= end}
        texts = " ".join(body.values())
        if "LDG" in texts and "STG" in texts:
            loops.append(body)
    if not loops:
        return []
    main = max(loops, key=lambda body: (_widest_store([*body.values()]), -len(body)))
    within = [body for body in loops if body.keys() < main.keys()]
    return [text for address, text in main.items() if not any(address in body for body in within)]


def _disassemble(cubin: bytes, option: str) -> str:
    program = cuobjdump()
    if program is None:
        raise OSError("cuobjdump, which comes with the triton wheel, was not found")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [program, option, file.name], check=True, capture_output=True, encoding="utf-8"
        ).stdout


def main_loops(cubin: bytes) -> dict[str, list[str]]:
    """The instructions of the main loop of each kernel of a cubin, by the kernel's name.

    Raises:
        OSError: there is no cuobjdump here.
    """
    kernels = _disassemble(cubin, "--dump-sass").split("Function : ")[1:]
    return {kernel.split()[0]: main_loop(kernel) for kernel in kernels}


def inspect(cubin: bytes, elements: int) -> dict[str, Kernel]:
    """All kernels of a cubin, by name.

    Args:
        cubin: machine code, from `katlib.cuda.jit.compile`.
        elements: how many elements each store of the main loop writes.

    Raises:
        OSError: there is no cuobjdump here.
    """
    usage, loops = _disassemble(cubin, "--dump-resource-usage"), main_loops(cubin)
    kernels = {}
    for name, line in re.findall(r"Function (\w+):\s*(.*)", usage):
        used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        stored = elements * sum("STG" in instruction for instruction in loops[name])
        kernels[name] = Kernel(
            registers=used["REG"],
            spills=used["STACK"] + used["LOCAL"],
            shared=used["SHARED"],
            instructions=len(loops[name]) / stored if stored else float("nan"),
        )
    return kernels


def measure(
    dtype: torch.dtype,
    arch: int,
    degrees: tuple[int, int] = (5, 4),
    width: int = 0,
    wide: bool = False,
    input_gradient: bool = True,
    coefficient_gradients: bool = True,
) -> tuple[dict[str, Kernel], float]:
    """Compiles rational.cu and looks at the result.

    Args:
        dtype: of the elements.
        arch: compute capability; 90 is 9.0.
        degrees: (m, n), of numerator and denominator.
        width: elements in a load; 0 stands for 16 bytes of them.
        wide: whether offsets have 64 bits.
        input_gradient, coefficient_gradients: what the backward kernel computes.

    Returns:
        The kernels by name, and the seconds that NVRTC took.

    Raises:
        OSError: there is no NVRTC or no cuobjdump here.
    """
    m, n = degrees
    x = torch.empty(0, 1, 1, dtype=dtype)
    a, b = torch.empty(1, m + 1), torch.empty(1, n)
    width = width or vector_width(16, dtype.itemsize)
    macros = definitions(x, a, b, width, wide, input_gradient, coefficient_gradients)
    start = time.perf_counter()
    cubin = jit.compile(SOURCE, dict(macros), arch)
    seconds = time.perf_counter() - start
    return inspect(cubin, width), seconds


def _columns(kernel: Kernel) -> str:
    return f"{kernel.instructions:19.1f} {kernel.registers:4} {kernel.spills:7}"


def main() -> None:
    """Prints the table."""
    title = "instr/elem  reg  spills"
    print(f"{'type':9} {'device':6}   forward: {title}   backward: {title}   compiled in")
    for dtype in TYPES:
        for arch in sorted({*ARCHS} & {*jit.architectures()}):
            kernels, seconds = measure(dtype, arch)
            forward = _columns(kernels["rational_forward"])
            backward = _columns(kernels["rational_backward"])
            name = str(dtype).removeprefix("torch.")
            print(f"{name:9} sm_{arch:<4} {forward}   {backward} {seconds:10.2f} s")


if __name__ == "__main__":
    main()
