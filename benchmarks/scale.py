"""Measures what chapter 15's cost model is made from and checked against: python benchmarks/scale.py [--device cpu] [--rounds 9].

The machine's three speeds; time and peak memory of training steps of KATs and the same ViTs; and data parallelism on two processes: a step of one process
alone, of both without a word between them, of both under DistributedDataParallel, and the sum of the gradients by itself. Writes results/scale-DEVICE.json.
"""

import argparse
import ctypes
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from model import MODELS, step
from timing import keep_memory, quantiles, ratio, slug, store, turns
from torch import distributed

import katlib

STEPS = {
    "cpu": [("nano", 128), ("T", 4), ("T", 16), ("S", 8), ("B", 4)],
    "cuda": [("T", 256), ("S", 128), ("B", 64), ("B", 16)],
}
PARALLEL = {
    "cpu": [("nano", 64), ("T", 8), ("T", 1), ("S", 2)],
    "cuda": [("T", 128), ("S", 128), ("B", 64), ("B", 16)],
}
TINY = dict(
    img_size=32, patch_size=32, embed_dim=16, depth=4, num_heads=2, num_classes=10
)  # so small that only its calls take time


def training_step(name: str, mlp: str, batch: int, device: torch.device):
    """The model and its training step, a function without arguments; weights are drawn in the simplest way, which costs a large model no time."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = katlib.VisionTransformer(**(TINY if name == "tiny" else MODELS[name]), mlp=mlp)
    model.to_empty(device=device)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    size = model.img_size
    return model, step(
        model,
        torch.randn(batch, 3, size, size, device=device),
        torch.randint(0, 10, (batch,), device=device),
    )


def speeds(device: torch.device, rounds: int) -> dict:
    """The machine of the cost model, `katlib.book.cost.Machine`, and the type that it computes in."""
    from katlib.book.cost import count_step

    n, dtype = (2048, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    A, B, C = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(3))
    x = torch.randn(128 * 197, 768, device=device)
    y = torch.empty_like(x)
    tiny = training_step("tiny", "mlp", 1, device)[1]
    for _ in range(3):
        tiny()
    warm = []  # one after the other, as a GPU's host calls: nothing else empties its caches
    for _ in range(60):
        started = time.perf_counter()
        tiny()
        warm.append(time.perf_counter() - started)
    times = turns(
        {"product": lambda: torch.mm(A, B, out=C), "copy": lambda: y.copy_(x), "tiny": tiny},
        device,
        rounds,
    )
    seconds = {name: statistics.median(t) / 1e3 for name, t in times.items()}
    kernels = len(
        count_step(
            lambda: katlib.VisionTransformer(**TINY, mlp="mlp"), 1, 32, half=device.type == "cuda"
        ).kernels
    )
    return {
        "peak": 2 * n**3 / seconds["product"],
        "bandwidth": 2 * x.nbytes / seconds["copy"],
        "call": seconds["tiny"] / kernels,
        "call_warm": statistics.median(warm) / kernels,
        "waits": device.type == "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: quantiles(t) for name, t in times.items()},
    }


def peak_bytes(arguments: tuple[str, str, int, str]) -> int:
    """The most memory that a training step takes, model and optimizer with it: as CUDA's allocator says it, or as the operating system does."""
    name, mlp, batch, kind = arguments
    device = torch.device(kind)
    if kind == "cpu":
        ctypes.CDLL(None).mallopt(
            -3, 65536
        )  # M_MMAP_THRESHOLD: a tensor that is freed goes back to the system at once
        training_step("tiny", mlp, 1, device)[1]()  # loads what is loaded once

    def resident(key: str) -> int:
        return next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(key)
        )

    before = resident("VmRSS") if kind == "cpu" else torch.cuda.memory_allocated()
    _, run = training_step(name, mlp, batch, device)
    for _ in range(2):
        run()
    if kind == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    else:
        torch.cuda.reset_peak_memory_stats()
    run()
    return (resident("VmHWM") if kind == "cpu" else torch.cuda.max_memory_allocated()) - before


def steps(device: torch.device, rounds: int) -> list[dict]:
    rows = []
    for name, batch in STEPS[device.type]:
        kinds = {"KAT": "grkan", "ViT": "mlp"}
        times = turns(
            {title: training_step(name, mlp, batch, device)[1] for title, mlp in kinds.items()},
            device,
            rounds,
            warmup=2,
        )
        memory = {}
        for title, mlp in kinds.items():
            with ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn")
            ) as pool:  # a process of its own
                memory[title] = pool.submit(peak_bytes, (name, mlp, batch, device.type)).result()
        rows.append(
            {
                "kind": "step",
                "model": name,
                "batch": batch,
                "ms": {way: quantiles(t) for way, t in times.items()},
                "ratio": ratio(times, "KAT", "ViT"),
                "peak_bytes": memory,
            }
        )
        print(
            f"{name}, batch {batch}: "
            + ", ".join(
                f"{way} {q['p50']:.1f} ms, {memory[way] / 1e6:.0f} MB"
                for way, q in rows[-1]["ms"].items()
            )
            + f"; KAT / ViT = {rows[-1]['ratio']:.3f}",
            flush=True,
        )
    return rows


def worker(rank: int, kind: str, rounds: int, meeting: str, out: str) -> None:
    """One of two processes; the first measures."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    if kind == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
        keep_memory()
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=2,
    )
    rows = []
    for name, batch in PARALLEL[kind]:
        torch.manual_seed(0)
        model, alone = training_step(name, "grkan", batch, device)
        size = model.img_size
        network = torch.nn.parallel.DistributedDataParallel(
            model, [device] if kind == "cuda" else None
        )
        together = step(
            network,
            torch.randn(batch, 3, size, size, device=device),
            torch.randint(0, 10, (batch,), device=device),
        )
        gradients = torch.zeros(sum(p.numel() for p in model.parameters()), device=device)

        def meet() -> None:
            if kind == "cuda":
                torch.cuda.synchronize(device)
            distributed.barrier()

        ways = {
            "alone": alone if rank == 0 else lambda: None,
            "beside": alone,
            "together": together,
            "sum": lambda: distributed.all_reduce(gradients),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 2):
            for way, run in ways.items():
                meet()
                started = time.perf_counter()
                run()
                meet()
                if turn >= 2:
                    times[way].append(1e3 * (time.perf_counter() - started))
        rows.append(
            {
                "kind": "parallel",
                "model": name,
                "batch_of_each": batch,
                "processes": 2,
                "threads_of_each": torch.get_num_threads(),
                "gradient_bytes": gradients.nbytes,
                "ms": {way: quantiles(t) for way, t in times.items()},
                "efficiency": ratio(times, "alone", "together"),
                "efficiency_without_sum": ratio(times, "alone", "beside"),
            }
        )
        if rank == 0:
            print(
                f"{name}, batch {batch} each: "
                + ", ".join(f"{way} {q['p50']:.1f} ms" for way, q in rows[-1]["ms"].items())
                + f"; efficiency {rows[-1]['efficiency']:.2f}, without the sum {rows[-1]['efficiency_without_sum']:.2f}",
                flush=True,
            )
    if rank == 0:
        torch.save(rows, out)
    distributed.destroy_process_group()


def parallel(device: torch.device, rounds: int) -> list[dict]:
    """The rows of two processes; their differences are small, so they take more rounds."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        print("there is one GPU only: two processes are left out")
        return []
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "rows")
        torch.multiprocessing.spawn(
            worker, (device.type, 3 * rounds, os.path.join(folder, "meeting"), out), nprocs=2
        )
        return torch.load(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        if sys.platform != "linux":
            sys.exit("memory on a CPU is measured as Linux tells it")
        keep_memory()
    machine = speeds(device, 15)
    print(
        f"{machine['peak'] / 1e9:.0f} GFLOP/s, {machine['bandwidth'] / 1e9:.1f} GB/s, {1e6 * machine['call']:.1f} us a call, {1e6 * machine['call_warm']:.1f} in a row",
        flush=True,
    )
    rows = [{"kind": "machine"} | machine]
    for part in (steps, parallel):
        rows += part(device, options.rounds)
        store(
            f"scale-{slug(device)}",
            "training steps beside the cost model's inputs; data parallelism on two processes",
            device,
            options.rounds,
            rows,
        )


if __name__ == "__main__":
    main()
