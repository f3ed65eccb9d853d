"""Chapter 10: blocks and what limits them, a sum in a fixed order, and a stage of the ladder."""

import math

import torch

from attacks import Attack
from katlib.book.cost import CHIPS


def decide(registers, groups, moved, instructions, *, unit=8, most=8, least=1, threads=256):
    """The solution of 10.1, with one ingredient changed."""
    rounded = math.ceil(registers / unit) * unit
    resident = min(most, 65_536 // (threads * rounded))
    return max(least, 132 * resident // groups), instructions / CHIPS["H100"].room(moved)


def decide_by_trying(registers, groups, moved, instructions):
    while registers % 8:
        registers += 1
    resident = 0
    while (resident + 1) * registers * 256 <= 65_536 and (resident + 1) * 256 <= 2048:
        resident += 1
    chip = CHIPS["H100"]
    ratio = instructions / chip.issue / (moved / chip.bandwidth)
    return torch.tensor(max(1, resident * 132 // groups)), ratio


def other_decision(change=lambda parts, ratio: (parts, ratio), **options):
    return (lambda *case: change(*decide(*case, **options)),)


def own_place(p, terms, memory):
    memory[p] = terms.sum()
    return memory


def own_place_wide(p, terms, memory):
    memory = memory.clone()
    memory[len(memory) - 1 - p] = terms.double().sum()
    return memory


def total(memory):
    return memory.double().sum()


def one_place(p, terms, memory):
    memory[0] += terms.sum()
    return memory


def two_places(p, terms, memory):
    memory[min(p % 2, len(memory) - 1)] += terms.sum()
    return memory


def overwritten(p, terms, memory):
    memory[0] = terms.sum()
    return memory


def without_last(p, terms, memory):
    memory[p] = terms[:-1].sum()
    return memory


def without_return(p, terms, memory):
    memory[p] = terms.sum()


HEAD = "__device__ void add_up_block(float (&sums)[COEFFICIENTS], float *da, float *db) {"
TREE = """
    __shared__ float shared[THREADS];
    for (int k = 0; k < COEFFICIENTS; k++) {
        shared[threadIdx.x] = sums[k];
        for (unsigned half = blockDim.x / 2; half; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        }
        if (threadIdx.x == 0) atomicAdd(destination(da, db, blockIdx.x, k), shared[0]);
        __syncthreads();
    }
"""
SHUFFLES = """
    __shared__ float warps[THREADS / 32][COEFFICIENTS];
    for (int k = 0; k < COEFFICIENTS; k++) {
        for (int half = 16; half; half /= 2)
            sums[k] += __shfl_down_sync(0xffffffff, sums[k], half);
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][k] = sums[k];
    }
    __syncthreads();
    if (threadIdx.x < COEFFICIENTS) {
        float total = 0;
        for (unsigned warp = 0; warp < blockDim.x / 32; warp++) total += warps[warp][threadIdx.x];
        atomicAdd(destination(da, db, blockIdx.x, threadIdx.x), total);
    }
"""
ONE_BY_ONE = """
    __shared__ float all[COEFFICIENTS][THREADS];
    for (int k = 0; k < COEFFICIENTS; k++) all[k][threadIdx.x] = sums[k];
    __syncthreads();
    if (threadIdx.x < COEFFICIENTS) {
        float total = 0;
        for (int t = 0; t < THREADS; t++) total += all[threadIdx.x][t];
        atomicAdd(destination(da, db, blockIdx.x, threadIdx.x), total);
    }
"""
STAGE_3 = """
    for (int k = 0; k < COEFFICIENTS; k++)
        atomicAdd(destination(da, db, blockIdx.x, k), sums[k]);
"""
SHARED_ATOMICS = """
    __shared__ float all[COEFFICIENTS];
    if (threadIdx.x < COEFFICIENTS) all[threadIdx.x] = 0;
    __syncthreads();
    for (int k = 0; k < COEFFICIENTS; k++) atomicAdd(&all[k], sums[k]);
    __syncthreads();
    if (threadIdx.x < COEFFICIENTS)
        atomicAdd(destination(da, db, blockIdx.x, threadIdx.x), all[threadIdx.x]);
"""
WARPS_ALONE = """
    for (int k = 0; k < COEFFICIENTS; k++) {
        for (int half = 16; half; half /= 2)
            sums[k] += __shfl_down_sync(0xffffffff, sums[k], half);
        if (threadIdx.x % 32 == 0) atomicAdd(destination(da, db, blockIdx.x, k), sums[k]);
    }
"""
PLAIN_ADDITIONS = """
    for (int k = 0; k < COEFFICIENTS; k++) *destination(da, db, blockIdx.x, k) += sums[k];
"""


def text(body, *changes):
    """A text of exercise 10.3, with changes, each of which has to be possible."""
    for old, new in changes:
        assert body.count(old) >= 1, old
        body = body.replace(old, new)
    return (HEAD + body + "}\n",)


ATOMIC_STORE = "atomicAdd(destination(da, db, blockIdx.x, k), shared[0]);"
PLAIN_STORE = (ATOMIC_STORE, "*destination(da, db, blockIdx.x, k) += shared[0];")
# a loop without braces, and what follows it on the same line
ONE_LINE = (
    "2)\n            sums[k] += __shfl_down_sync(0xffffffff, sums[k], half);\n        if",
    "2) sums[k] += __shfl_down_sync(0xffffffff, sums[k], half); if",
)
LAST_BARRIER = ("        __syncthreads();\n    }\n", "    }\n")
IN_A_BRANCH = (
    "            __syncthreads();\n",
    "            if (threadIdx.x < half) __syncthreads();\n",
)
FIRST_BARRIER = ("            __syncthreads();\n", "")

ATTACKS = {
    "10.1": Attack(
        right=[(decide,), (decide_by_trying,)],
        wrong={
            "what stands in the exercise": (lambda *case: (0, 0.0),),
            "registers not rounded": other_decision(unit=1),
            "any number of threads": other_decision(most=99),
            "perhaps no block": other_decision(least=0),
            "blocks of 128 threads": other_decision(threads=128),
            "blocks of all groups": (lambda r, groups, *work: decide(r, 1, *work),),
            "one multiprocessor": other_decision(lambda parts, ratio: (parts // 132, ratio)),
            "the ratio upside down": other_decision(lambda parts, ratio: (parts, 1 / ratio)),
            "the instructions alone": (lambda *case: (decide(*case)[0], case[3]),),
            "bytes left out": (lambda r, groups, _, n: decide(r, groups, 12, n),),
            "which of them limits": other_decision(lambda parts, ratio: (parts, ratio > 1)),
            "exchanged": other_decision(lambda parts, ratio: (ratio, parts)),
            "an error": (lambda *case: case[9],),
        },
    ),
    "10.2": Attack(
        right=[(own_place, total), (own_place_wide, lambda memory: memory.flip(0).sum())],
        wrong={
            "what stands in the exercise": (one_place, lambda memory: memory[0]),
            "one place": (one_place, total),
            "two places": (two_places, total),
            "the last block alone": (overwritten, total),
            "the mean": (own_place, lambda memory: memory.mean()),
            "the first block alone": (own_place, lambda memory: memory[0]),
            "without the last term": (without_last, total),
            "no memory": (without_return, total),
            "the first terms' sum": (own_place, lambda memory: torch.tensor(50030.0755)),
            "a place for the sum of the others": (
                lambda p, terms, memory: memory + terms.sum(),
                lambda memory: memory[-1],
            ),
        },
    ),
    "10.3": Attack(
        right=[text(TREE), text(SHUFFLES), text(ONE_BY_ONE), text(SHUFFLES, ONE_LINE)],
        wrong={
            "what stands in the exercise": text(STAGE_3),
            "nothing": ("",),
            "an empty function": text(""),
            "no CUDA": ("def add_up_block(sums): pass",),
            "shared atomics": text(SHARED_ATOMICS),
            "an atomic for each warp": text(WARPS_ALONE),
            "additions that are not atomic": text(PLAIN_ADDITIONS),
            "a store of each block that is not atomic": text(TREE, PLAIN_STORE),
            "no last barrier": text(TREE, LAST_BARRIER),
            "no barrier in the tree": text(TREE, FIRST_BARRIER),
            "no barrier between warps": text(SHUFFLES, ("__syncthreads();", "")),
            "a step too few": text(TREE, ("blockDim.x / 2; half", "blockDim.x / 4; half")),
            "half a warp": text(SHUFFLES, ("half = 16", "half = 8")),
            "without the last warp": text(SHUFFLES, ("blockDim.x / 32; warp", "7; warp")),
            "without the first warp": text(SHUFFLES, ("unsigned warp = 0", "unsigned warp = 1")),
            "the first thread alone": text(TREE, ("+= shared[threadIdx.x + half]", "*= 1")),
            "twice": text(
                SHUFFLES,
                ("db, blockIdx.x, threadIdx.x), total", "db, blockIdx.x, threadIdx.x), 2 * total"),
            ),
            "the other group": text(
                SHUFFLES, ("blockIdx.x, threadIdx.x), total", "1 - blockIdx.x, threadIdx.x), total")
            ),
            "one coefficient too few": text(
                SHUFFLES, ("threadIdx.x < COEFFICIENTS", "threadIdx.x + 1 < COEFFICIENTS")
            ),
            "a barrier in a branch": text(TREE, IN_A_BRANCH),
        },
    ),
}
