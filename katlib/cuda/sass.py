"""What the compiler made of a kernel, without a GPU: registers, spills, and instructions per element, read from its machine code (SASS).

    python -m katlib.cuda.sass                  a table for degrees (5, 4): every element type, every generation of GPUs

NVRTC compiles for any device; the `cuobjdump` that comes with triton, which torch brings on Linux, reads the result.
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
    registers: int  # of a thread
    spills: int  # bytes of local memory of a thread: stack, spilled registers
    shared: int  # bytes of shared memory of a block
    instructions: float  # per element in the main loop; nan if the kernel has no such loop


def cuobjdump() -> Path | None:
    """The disassembler's place, or None."""
    triton = find_spec("triton")
    path = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton else None
    return path if path and path.exists() else None


def main_loop(sass: str) -> list[str]:
    """The instructions of the innermost loop that loads from global memory and stores to it. Code out of line is not in it."""
    code = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass)
    ]
    loops = []
    for end, text in code:
        jump = re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < end:
            body = [
                t
                for address, t in code
                if int(jump[1], 16) <= address <= end and not re.match(r"NOP\b", t)
            ]
            if any("LDG" in t for t in body) and any("STG" in t for t in body):
                loops.append(body)
    return min(loops, key=len, default=[])


def inspect(cubin: bytes, elements: int) -> dict[str, Kernel]:
    """All kernels of a cubin by name; each store of their main loops is of so many elements."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = lambda option: (
            subprocess.run(
                [cuobjdump(), option, file.name], check=True, capture_output=True, text=True
            ).stdout
        )
        usage, sass = run("--dump-resource-usage"), run("--dump-sass")
    loops = {part.split()[0]: main_loop(part) for part in sass.split("Function : ")[1:]}
    kernels = {}
    for name, text in re.findall(r"Function (\w+):\s*(.*)", usage):
        used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", text)}
        stores = sum("STG" in instruction for instruction in loops[name]) * elements
        kernels[name] = Kernel(
            used["REG"],
            used["STACK"] + used["LOCAL"],
            used["SHARED"],
            len(loops[name]) / stores if stores else float("nan"),
        )
    return kernels


def measure(
    dtype: torch.dtype,
    arch: int,
    degrees: tuple[int, int] = (5, 4),
    width: int = 0,
    wide: bool = False,
) -> tuple[dict[str, Kernel], float]:
    """rational.cu's kernels for this element type, with 16-byte loads unless `width` is given, and the seconds that NVRTC took."""
    m, n = degrees
    width = width or vector_width(16, dtype.itemsize)
    macros = definitions(
        torch.empty(0, 1, 1, dtype=dtype), torch.empty(1, m + 1), torch.empty(1, n), width, wide
    )
    start = time.perf_counter()
    cubin = jit.compile(SOURCE, dict(macros), arch)
    return inspect(cubin, width), time.perf_counter() - start


def main() -> None:
    print(
        f"{'type':9} {'device':6}   forward: instr/elem  reg  spills   backward: instr/elem  reg  spills   compiled in"
    )
    for dtype in TYPES:
        for arch in sorted({*ARCHS} & {*jit.architectures()}):
            kernels, seconds = measure(dtype, arch)
            columns = [
                f"{k.instructions:19.1f} {k.registers:4} {k.spills:7}"
                for k in (kernels["rational_forward"], kernels["rational_backward"])
            ]
            print(f"{str(dtype)[6:]:9} sm_{arch:<4} {columns[0]}   {columns[1]} {seconds:10.2f} s")


if __name__ == "__main__":
    main()
