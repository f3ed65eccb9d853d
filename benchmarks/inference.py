"""Times inference of a KAT beside the same Vision Transformer with GELU MLPs: python benchmarks/inference.py [--model T] [--batch 1 64].

Each eagerly and under torch.compile, on a CPU in float32 also by onnxruntime from an exported file; on a GPU in bfloat16. Writes
results/inference-DEVICE.json.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from model import MODELS
from timing import quantiles, ratio, slug, store, turns

import katlib


def by_onnxruntime(model: torch.nn.Module, x: torch.Tensor):
    """The model's inference by onnxruntime, with as many threads as torch uses, as a function without arguments; None where it is not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401: what torch.onnx.export writes with
    except ImportError:
        print("onnxruntime or onnxscript is not installed: its rows are left out")
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (x,),
            path,
            input_names=["images"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # its threads would spin on into the next way's turn
        session = onnxruntime.InferenceSession(
            path.read_bytes(), settings, providers=["CPUExecutionProvider"]
        )
    images = x.numpy()
    return lambda: session.run(None, {"images": images})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = options.model or ("nano" if device.type == "cpu" else "T")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    with torch.inference_mode():
        for batch in options.batch:
            size = MODELS[name].get("img_size", 224)
            x = torch.randn(batch, 3, size, size).to(device, dtype)
            ways = {}
            for mlp, title in (("grkan", "KAT"), ("mlp", "ViT")):
                torch.manual_seed(0)
                model = katlib.VisionTransformer(**MODELS[name], mlp=mlp).to(device, dtype).eval()
                compiled = torch.compile(model)
                ways[title] = lambda model=model: model(x)
                ways[f"{title} compiled"] = lambda model=compiled: model(x)
                if device.type == "cpu" and (session := by_onnxruntime(model, x)):
                    ways[f"{title} onnxruntime"] = session
            times = turns(ways, device, options.rounds)
            row = {
                "model": name,
                "batch": batch,
                "dtype": str(dtype).removeprefix("torch."),
                "ms": {way: quantiles(t) for way, t in times.items()},
                "ratio": {
                    how or "eager": ratio(times, f"KAT {how}".strip(), f"ViT {how}".strip())
                    for how in ("", "compiled", "onnxruntime")
                    if f"KAT {how}".strip() in times
                },
            }
            rows.append(row)
            print(
                f"{name}, batch {batch}: "
                + ", ".join(f"{way} {q['p50']:.2f} ms" for way, q in row["ms"].items())
                + "; KAT / ViT "
                + ", ".join(f"{how} {value:.2f}" for how, value in row["ratio"].items()),
                flush=True,
            )
            store(
                f"inference-{slug(device)}",
                "inference, KAT and the same ViT with GELU MLPs",
                device,
                options.rounds,
                rows,
            )


if __name__ == "__main__":
    main()
