"""Times inference of a KAT beside the same Vision Transformer with GELU MLPs.

    python benchmarks/inference.py [--model T] [--batch 1 64]

Each runs eagerly and under torch.compile, on a CPU in float32 also in onnxruntime, from an exported
file; on a GPU in bfloat16. Writes results/inference-DEVICE.json.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import fake_gpu
import torch
from model import MLP_OF_TITLE, MODELS, build
from timing import parse_with_dry_run, quantiles, ratio, slug, store, turns
from torch import Tensor, nn

# how a model is run: what its name in the results ends with, and how its ratio is called there
RATIO_NAMES = {"": "eager", " compiled": "compiled", " onnxruntime": "onnxruntime"}


def onnxruntime_is_installed() -> bool:
    """Whether models can be exported to ONNX and run; says so if they cannot."""
    # torch.onnx.export writes with onnxscript
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        return True
    print("onnxruntime or onnxscript is not installed: its rows are left out")
    return False


def in_onnxruntime(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """The model's inference in onnxruntime as a function without arguments.

    It uses as many threads as torch does.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # otherwise its threads would go on spinning while the next way has its turn
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        onnx_bytes(model, images), settings, providers=["CPUExecutionProvider"]
    )
    return partial(session.run, None, {"images": images.numpy()})


def onnx_bytes(model: nn.Module, images: Tensor) -> bytes:
    """The model as an ONNX file's contents, for images of this shape."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=["images"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


def all_ways(
    name: str, images: Tensor, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Both models, each in every way that is possible here."""
    try_onnxruntime = device.type == "cpu" and onnxruntime_is_installed()
    ways: dict[str, Callable[[], object]] = {}
    for title, mlp in MLP_OF_TITLE.items():
        model = build(MODELS[name], mlp).to(device, dtype).eval()
        ways[title] = partial(model, images)
        ways[f"{title} compiled"] = partial(torch.compile(model), images)
        if try_onnxruntime:
            ways[f"{title} onnxruntime"] = in_onnxruntime(model, images)
    return ways


@torch.inference_mode()
def measure(name: str, batch: int, device: torch.device, dtype: torch.dtype, rounds: int) -> dict:
    """One row of the result: the KAT and the ViT for one batch size."""
    img_size = MODELS[name].img_size
    images = torch.randn(batch, 3, img_size, img_size).to(device, dtype)
    times = turns(all_ways(name, images, device, dtype), device, rounds)
    ratios = {
        ratio_name: ratio(times, f"KAT{ending}", f"ViT{ending}")
        for ending, ratio_name in RATIO_NAMES.items()
        if f"KAT{ending}" in times
    }
    return {
        "model": name,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {way: quantiles(milliseconds) for way, milliseconds in times.items()},
        "ratio": ratios,
    }


def print_row(row: dict) -> None:
    medians = ", ".join(f"{way} {ms['p50']:.2f} ms" for way, ms in row["ms"].items())
    ratios = ", ".join(f"{name} {value:.2f}" for name, value in row["ratio"].items())
    print(f"{row['model']}, batch {row['batch']}: {medians}; KAT / ViT {ratios}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=20)
    return parse_with_dry_run(parser)


def measure_all(options: argparse.Namespace, device: torch.device) -> None:
    """Measures a row for each batch size; stores after each what there is until then."""
    name = options.model or ("nano" if device.type == "cpu" or options.dry_run else "T")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    what = "inference, KAT and the same ViT with GELU MLPs"
    rows = []
    for batch in [1, 2] if options.dry_run else options.batch:
        rows.append(measure(name, batch, device, dtype, options.rounds))
        print_row(rows[-1])
        store(f"inference-{slug(device)}", what, device, options.rounds, rows)


def main() -> None:
    options = parse_arguments()
    with fake_gpu.rehearsal() if options.dry_run else contextlib.nullcontext():
        measure_all(options, torch.device(options.device))


if __name__ == "__main__":
    main()
