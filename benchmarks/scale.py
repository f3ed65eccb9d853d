"""Measures what chapter 15's cost model is made from and checked against.

    python benchmarks/scale.py [--device cpu] [--rounds 9]

It has three parts: the machine's three speeds; time and peak memory of training steps of KATs and
the same ViTs; and data parallelism on two processes. The last times a step of one process alone, of
both without communication, of both under DistributedDataParallel, and the sum of the gradients by
itself. Writes results/scale-DEVICE.json.
"""

import argparse
import contextlib
import ctypes
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import fake_gpu
import torch
from model import MLP_OF_TITLE, MODELS, build, random_batch, training_step
from timing import (
    M_MMAP_THRESHOLD,
    keep_memory,
    parse_with_dry_run,
    quantiles,
    ratio,
    slug,
    store,
    turns,
)
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from katlib import VisionTransformer
from katlib.architecture import Architecture
from katlib.book.cost import count_step

# models and batch sizes whose training steps are measured
STEPS = {
    "cpu": [("nano", 128), ("T", 4), ("T", 16), ("S", 8), ("B", 4)],
    "cuda": [("T", 256), ("S", 128), ("B", 64), ("B", 16)],
}

# models and batch sizes of each of the two processes
PARALLEL = {
    "cpu": [("nano", 64), ("T", 8), ("T", 1), ("S", 2)],
    "cuda": [("T", 128), ("S", 128), ("B", 64), ("B", 16)],
}

# so small that only its calls take time
TINY = Architecture(
    img_size=32, patch_size=32, embed_dim=16, depth=4, num_heads=2, num_classes=10, mlp="mlp"
)

# the side of the square matrices whose product gives the peak
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}

# the machine's speeds are measured in this many rounds
SPEED_ROUNDS = 15

PROCESSES = 2


# ---- models


def build_quickly(architecture: Architecture, mlp: str, device: torch.device) -> VisionTransformer:
    """A model whose weights are drawn in the simplest way, which costs a large model no time."""
    with torch.device("meta"):
        model = build(architecture, mlp)
    model.to_empty(device=device)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model


def random_step(
    network: nn.Module, img_size: int, batch: int, device: torch.device
) -> Callable[[], None]:
    """A training step of `network` on random images."""
    return training_step(network, *random_batch(img_size, batch, device))


def new_step(name: str, mlp: str, batch: int, device: torch.device) -> Callable[[], None]:
    """A training step of a new model."""
    model = build_quickly(MODELS[name], mlp, device)
    return random_step(model, model.img_size, batch, device)


def tiny_step(device: torch.device) -> Callable[[], None]:
    """A training step that spends its time on calls alone."""
    model = build_quickly(TINY, "mlp", device)
    return random_step(model, TINY.img_size, 1, device)


# ---- the machine


def measure_machine(device: torch.device) -> dict:
    """The machine of the cost model, `katlib.book.cost.Machine`, and the dtype it computes in."""
    on_cpu = device.type == "cpu"
    size, dtype = PRODUCT_SIZE[device.type], torch.float32 if on_cpu else torch.bfloat16
    A, B, product = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    source = torch.randn(128 * 197, 768, device=device)
    target = torch.empty_like(source)
    tiny = tiny_step(device)
    warm_seconds = seconds_in_a_row(tiny)
    ways = {
        "product": partial(torch.mm, A, B, out=product),
        "copy": partial(target.copy_, source),
        "tiny": tiny,
    }
    times = turns(ways, device, SPEED_ROUNDS)
    seconds = {name: statistics.median(ms) / 1e3 for name, ms in times.items()}
    calls = calls_of_tiny_step(half=not on_cpu)
    return {
        "kind": "machine",
        "peak": 2 * size**3 / seconds["product"],
        "bandwidth": 2 * source.nbytes / seconds["copy"],
        "call": seconds["tiny"] / calls,
        "call_warm": warm_seconds / calls,
        "waits": on_cpu,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: quantiles(milliseconds) for name, milliseconds in times.items()},
    }


def seconds_in_a_row(run: Callable[[], None]) -> float:
    """The median time of calls that follow each other, as a GPU's host makes them.

    Nothing else empties the caches in between.
    """
    for _ in range(3):
        run()
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def calls_of_tiny_step(half: bool) -> int:
    """The number of kernels that a step of the tiny model calls."""
    build_tiny = partial(VisionTransformer, **TINY.as_dict())
    return len(count_step(build_tiny, 1, TINY.img_size, half=half).kernels)


def print_machine(row: dict) -> None:
    print(
        f"{row['peak'] / 1e9:.0f} GFLOP/s, {row['bandwidth'] / 1e9:.1f} GB/s, "
        f"{1e6 * row['call']:.1f} us a call, {1e6 * row['call_warm']:.1f} in a row",
        flush=True,
    )


# ---- training steps and their memory


def measure_steps(device: torch.device, rounds: int) -> Iterator[dict]:
    """A row for each model and batch size of `STEPS`."""
    for name, batch in STEPS[device.type]:
        row = measure_step(name, batch, device, rounds)
        print_step(row)
        yield row


def measure_step(name: str, batch: int, device: torch.device, rounds: int) -> dict:
    ways = {title: new_step(name, mlp, batch, device) for title, mlp in MLP_OF_TITLE.items()}
    times = turns(ways, device, rounds, warmup=2)
    memory = {
        title: peak_bytes(name, mlp, batch, device.type) for title, mlp in MLP_OF_TITLE.items()
    }
    return {
        "kind": "step",
        "model": name,
        "batch": batch,
        "ms": {title: quantiles(milliseconds) for title, milliseconds in times.items()},
        "ratio": ratio(times, "KAT", "ViT"),
        "peak_bytes": memory,
    }


def print_step(row: dict) -> None:
    measured = ", ".join(
        f"{title} {ms['p50']:.1f} ms, {row['peak_bytes'][title] / 1e6:.0f} MB"
        for title, ms in row["ms"].items()
    )
    print(
        f"{row['model']}, batch {row['batch']}: {measured}; KAT / ViT = {row['ratio']:.3f}",
        flush=True,
    )


def in_a_process_of_its_own(function: Callable[..., int], *arguments) -> int:
    """Calls `function` where nothing else has taken memory yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes(name: str, mlp: str, batch: int, device_type: str) -> int:
    """The most memory that a training step takes, with model and optimizer."""
    if device_type == "cpu":
        return in_a_process_of_its_own(peak_bytes_on_cpu, name, mlp, batch)
    # CUDA's allocator knows what was there before; a process would have to load torch again
    return peak_bytes_on_gpu(name, mlp, batch)


def peak_bytes_on_cpu(name: str, mlp: str, batch: int) -> int:
    """As the operating system counts it."""
    device = torch.device("cpu")
    # a tensor that is freed goes back to the system at once
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    # libraries that are loaded at the first step are not the model's memory
    tiny_step(device)()
    before = process_bytes("VmRSS")
    run = new_step(name, mlp, batch, device)
    run()
    run()
    # resets the peak
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    run()
    return process_bytes("VmHWM") - before


def process_bytes(key: str) -> int:
    """An entry of Linux's account of this process's memory: VmRSS is now, VmHWM is the peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(f"/proc/self/status has no {key}")


def peak_bytes_on_gpu(name: str, mlp: str, batch: int) -> int:
    """As CUDA's allocator counts it."""
    before = torch.cuda.memory_allocated()
    run = new_step(name, mlp, batch, torch.device("cuda"))
    run()
    run()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


# ---- data parallelism on two processes


def measure_parallel(device: torch.device, rounds: int) -> list[dict]:
    """A row for each model and batch size of `PARALLEL`.

    The differences between the ways are small, so they take three times as many rounds.
    """
    if device.type == "cuda" and torch.cuda.device_count() < PROCESSES:
        print("there is one GPU only: two processes are left out")
        return []
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        rows = Path(folder) / "rows"
        arguments = (device.type, PARALLEL[device.type], 3 * rounds, meeting, rows)
        torch.multiprocessing.spawn(parallel_worker, arguments, nprocs=PROCESSES)
        return torch.load(rows)


def parallel_worker(
    rank: int,
    device_type: str,
    models: list[tuple[str, int]],
    rounds: int,
    meeting: Path,
    rows_path: Path,
) -> None:
    """One of two processes, which meet at the file `meeting`; the first writes the rows."""
    device = set_up_device(rank, device_type)
    distributed.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=PROCESSES,
    )
    rows = []
    for name, batch in models:
        rows.append(measure_parallel_step(name, batch, device, rank, rounds))
        if rank == 0:
            print_parallel(rows[-1])
    if rank == 0:
        torch.save(rows, rows_path)
    distributed.destroy_process_group()


def set_up_device(rank: int, device_type: str) -> torch.device:
    """A GPU, or this process's part of the CPU's threads."""
    if device_type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(max(1, torch.get_num_threads() // PROCESSES))
    keep_memory()
    return torch.device(device_type)


def measure_parallel_step(
    name: str, batch: int, device: torch.device, rank: int, rounds: int
) -> dict:
    model = build_quickly(MODELS[name], "grkan", device)
    step = random_step(model, model.img_size, batch, device)
    network = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    parameters = sum(p.numel() for p in model.parameters())
    gradients = torch.zeros(parameters, device=device)
    ways = {
        "alone": step if rank == 0 else do_nothing,
        "beside": step,
        "together": random_step(network, model.img_size, batch, device),
        "sum": partial(distributed.all_reduce, gradients),
    }
    times = turns_together(ways, device, rounds)
    return {
        "kind": "parallel",
        "model": name,
        "batch_of_each": batch,
        "processes": PROCESSES,
        "threads_of_each": torch.get_num_threads(),
        "gradient_bytes": gradients.nbytes,
        "ms": {way: quantiles(milliseconds) for way, milliseconds in times.items()},
        "efficiency": ratio(times, "alone", "together"),
        "efficiency_without_sum": ratio(times, "alone", "beside"),
    }


def do_nothing() -> None:
    pass


def turns_together(
    ways: dict[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Milliseconds of each way in each round, until all processes have finished it."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(warmup + rounds):
        for way, run in ways.items():
            wait_for_all(device)
            started = time.perf_counter()
            run()
            wait_for_all(device)
            if round_number >= warmup:
                times[way].append(1e3 * (time.perf_counter() - started))
    return times


def wait_for_all(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    distributed.barrier()


def print_parallel(row: dict) -> None:
    medians = ", ".join(f"{way} {ms['p50']:.1f} ms" for way, ms in row["ms"].items())
    print(
        f"{row['model']}, batch {row['batch_of_each']} each: {medians}; "
        f"efficiency {row['efficiency']:.2f}, "
        f"without the sum {row['efficiency_without_sum']:.2f}",
        flush=True,
    )


# ---- the command line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    return parse_with_dry_run(parser)


def toy_sizes() -> None:
    """Makes everything so small that a CPU measures it in seconds."""
    global PRODUCT_SIZE, SPEED_ROUNDS
    PRODUCT_SIZE = dict.fromkeys(PRODUCT_SIZE, 64)
    SPEED_ROUNDS = 2
    STEPS["cuda"] = [("nano", 2)]


def measure_all(options: argparse.Namespace, device: torch.device) -> None:
    """Measures all rows; stores after each what there is until then."""
    what = "training steps beside the cost model's inputs; data parallelism on two processes"
    rows = []
    for row in all_rows(device, options.rounds):
        rows.append(row)
        store(f"scale-{slug(device)}", what, device, options.rounds, rows)


def all_rows(device: torch.device, rounds: int) -> Iterator[dict]:
    machine = measure_machine(device)
    print_machine(machine)
    yield machine
    yield from measure_steps(device, rounds)
    yield from measure_parallel(device, rounds)


def main() -> None:
    options = parse_arguments()
    device = torch.device(options.device)
    if device.type == "cpu":
        if sys.platform != "linux":
            sys.exit("memory on a CPU is measured as Linux tells it")
        keep_memory()
    if options.dry_run:
        toy_sizes()
    with fake_gpu.rehearsal() if options.dry_run else contextlib.nullcontext():
        measure_all(options, device)


if __name__ == "__main__":
    main()
