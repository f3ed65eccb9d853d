"""Alternatives to katlib/cuda/rational.cu, for `benchmarks/kernel.py --variant`.

A variant has the same three entry points. It is a file of its own, or one of `VARIANTS`: the
present source with a few lines replaced. So a variant stays what it says when the rest of the
source changes, and a variant whose lines are gone is an error.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import katlib.cuda
from katlib.cuda import jit, sass
from katlib.files import write_whole

BUILD = Path(__file__).resolve().parents[2] / "build/variants"
H100 = 90


class Variant(NamedTuple):
    """What a variant changes, in words, and the text that it replaces, each with what."""

    what: str
    replacements: tuple[tuple[str, str], ...]


BACKWARD_BOUNDS = "__launch_bounds__(THREADS, resident_blocks()) rational_backward"
PACK = "struct alignas(WIDTH * sizeof(TYPE)) Pack { TYPE element[WIDTH]; };\n"

# __ldcs and __stcs take words, not structures. The emulator has neither.
STREAMS = """
template <int BYTES> struct Words;
template <> struct Words<16> { using type = uint4; };
template <> struct Words<8> { using type = uint2; };
template <> struct Words<4> { using type = unsigned; };
template <> struct Words<2> { using type = unsigned short; };
__device__ inline Pack load_once(const Pack *from) {
    using Word = Words<sizeof(Pack)>::type;
    const Word word = __ldcs(reinterpret_cast<const Word *>(from));
    Pack pack;
    memcpy(&pack, &word, sizeof pack);
    return pack;
}
__device__ inline void store_once(Pack *to, const Pack &pack) {
    using Word = Words<sizeof(Pack)>::type;
    Word word;
    memcpy(&word, &pack, sizeof word);
    __stcs(reinterpret_cast<Word *>(to), word);
}
"""
STREAMS_OR_NONE = f"""{PACK}
#ifdef __CUDACC_RTC__{STREAMS}#else
inline Pack load_once(const Pack *from) {{ return *from; }}
inline void store_once(Pack *to, const Pack &pack) {{ *to = pack; }}
#endif
"""

FORWARD_LOAD = "        const Pack in = x[walk.offset];\n"
FORWARD_STORE = "        y[walk.offset] = out;\n"
FORWARD_HUGE = "if (any_huge) forward_huge(x[walk.offset], a, b, y[walk.offset]);"
BACKWARD_LOAD = "            const Pack in = x[walk.offset], gradient = g[walk.offset];\n"
BACKWARD_STORE = "            if constexpr (INPUT_GRADIENT) dx[walk.offset] = out;\n"
BACKWARD_ADVANCE = "            last = walk.offset;\n            walk.advance();\n"
FORWARD_LOOP = "#pragma unroll 1\n    for (; walk.unfinished(); walk.advance()) {\n"
BACKWARD_LOOP = "    while (walk.unfinished()) {\n        Real sum[COEFFICIENTS] = {};\n"

# every load and store of large tensors, marked as used only once
STREAMED_STORES = (
    (FORWARD_STORE, "        store_once(y + walk.offset, out);\n"),
    (
        BACKWARD_STORE,
        "            if constexpr (INPUT_GRADIENT) store_once(dx + walk.offset, out);\n",
    ),
)
STREAMED_LOADS = (
    (FORWARD_LOAD, "        const Pack in = load_once(x + walk.offset);\n"),
    (
        BACKWARD_LOAD,
        "            const Pack in = load_once(x + walk.offset);\n"
        "            const Pack gradient = load_once(g + walk.offset);\n",
    ),
)

# The next pack is asked for before the present one is computed.
TWO_PACKS = (
    (
        FORWARD_LOOP + FORWARD_LOAD,
        "    Pack next = {};\n"
        "    if (walk.unfinished()) next = x[walk.offset];\n"
        "#pragma unroll 1\n"
        "    while (walk.unfinished()) {\n"
        "        const Pack in = next;\n"
        "        const Index here = walk.offset;\n"
        "        walk.advance();\n"
        "        if (walk.unfinished()) next = x[walk.offset];\n",
    ),
    (FORWARD_STORE, "        y[here] = out;\n"),
    (FORWARD_HUGE, "if (any_huge) forward_huge(x[here], a, b, y[here]);"),
    (
        BACKWARD_LOOP,
        "    Pack next = {}, next_gradient = {};\n"
        "    if (walk.unfinished()) next = x[walk.offset], next_gradient = g[walk.offset];\n"
        + BACKWARD_LOOP,
    ),
    (
        BACKWARD_LOAD,
        "            const Pack in = next, gradient = next_gradient;\n"
        "            const Index here = walk.offset;\n"
        "            walk.advance();\n"
        "            if (walk.unfinished())\n"
        "                next = x[walk.offset], next_gradient = g[walk.offset];\n",
    ),
    (BACKWARD_STORE, "            if constexpr (INPUT_GRADIENT) dx[here] = out;\n"),
    (BACKWARD_ADVANCE, "            last = here;\n"),
)


def _blocks(number: int) -> tuple[tuple[str, str], ...]:
    bounds = BACKWARD_BOUNDS.replace("resident_blocks()", str(number))
    return ((BACKWARD_BOUNDS, bounds),)


VARIANTS = {
    "blocks3": Variant("backward with 3 blocks on a multiprocessor, 80 registers", _blocks(3)),
    "blocks5": Variant("backward with 5 blocks on a multiprocessor, 48 registers", _blocks(5)),
    "streaming_stores": Variant(
        "y and dx leave the cache first", ((PACK, STREAMS_OR_NONE), *STREAMED_STORES)
    ),
    "streaming": Variant(
        "x, g, y and dx leave the cache first",
        ((PACK, STREAMS_OR_NONE), *STREAMED_STORES, *STREAMED_LOADS),
    ),
    "two_packs": Variant("the next pack is loaded before this one is computed", TWO_PACKS),
    "two_packs_blocks3": Variant(
        "the same with 3 blocks of backward, so that there are registers for it",
        (*TWO_PACKS, *_blocks(3)),
    ),
}


def text_of(name: str) -> str:
    """The source of a prepared variant.

    Raises:
        ValueError: rational.cu no longer has the lines that the variant replaces, or has them more
            than once.
    """
    text = katlib.cuda.SOURCE.read_text(encoding="utf-8")
    variant = VARIANTS[name]
    for old, new in variant.replacements:
        if text.count(old) != 1:
            raise ValueError(
                f"variant {name} no longer fits rational.cu, which has {text.count(old)} times: "
                f"{old.strip()}"
            )
        text = text.replace(old, new)
    return f"// Variant {name} of rational.cu: {variant.what}.\n{text}"


def source_of(name: str) -> Path:
    """The file of a variant: the name of a prepared one, or a file.

    Raises:
        ValueError: there is neither.
    """
    if name in VARIANTS:
        BUILD.mkdir(parents=True, exist_ok=True)
        path = BUILD / f"{name}.cu"
        # another program may be reading it
        with write_whole(path) as temporary:
            temporary.write_text(text_of(name), encoding="utf-8")
        return path
    path = Path(name).resolve()
    if not path.is_file():
        raise ValueError(f"there is no variant {name}; there are {', '.join(VARIANTS)}, and files")
    return path


@contextlib.contextmanager
def in_use(source: Path) -> Iterator[None]:
    """Inside, katlib.cuda compiles and launches this source."""
    before = katlib.cuda.SOURCE
    katlib.cuda.SOURCE = source
    try:
        yield
    finally:
        katlib.cuda.SOURCE = before


def count(source: Path, dtype: torch.dtype, arch: int = H100) -> dict[str, sass.Kernel]:
    """What the compiler makes of a source for degrees (5, 4), see `katlib.cuda.sass`; no GPU.

    Raises:
        OSError: there is no NVRTC or no cuobjdump here.
        RuntimeError: the source does not compile.
    """
    width = katlib.cuda.vector_width(16, dtype.itemsize)
    x = torch.empty(0, 1, width, dtype=dtype)
    a, b = torch.empty(1, 6), torch.empty(1, 4)
    macros = katlib.cuda.definitions(x, a, b, width, wide=False)
    return sass.inspect(jit.compile(source, dict(macros), arch), width)
