"""Times a training step of a KAT beside the same Vision Transformer with GELU MLPs: python benchmarks/model.py [--model B] [--batch 64].

Forward, loss, backward and AdamW; under bfloat16 autocast on a GPU, float32 on a CPU; uncompiled and, with --compile, compiled. Writes
results/model-DEVICE.json.
"""

import argparse

import torch
from timing import quantiles, ratio, slug, store, turns
from torch.nn import functional as F

import katlib

MODELS = {
    "nano": dict(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, num_classes=10),
    "T": dict(embed_dim=192, num_heads=3),
    "S": dict(embed_dim=384, num_heads=6),
    "B": dict(embed_dim=768, num_heads=12),
}


def step(model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor):
    """A training step of `model` as a function without arguments."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
            logits = model(x)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", nargs="*", choices=MODELS)
    parser.add_argument(
        "--batch", type=int, help="images; default: 256 for T, 128 for S, 64 for B, 128 for nano"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--compile", action="store_true", help="time the models under torch.compile too"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    for name in options.model or (["nano"] if device.type == "cpu" else ["T", "S", "B"]):
        batch = options.batch or {"T": 256, "S": 128, "B": 64, "nano": 128}[name]
        size = MODELS[name].get("img_size", 224)
        x, labels = (
            torch.randn(batch, 3, size, size, device=device),
            torch.randint(0, 10, (batch,), device=device),
        )
        ways = {}
        for mlp, title in (("grkan", "KAT"), ("mlp", "ViT")):
            torch.manual_seed(0)
            model = katlib.VisionTransformer(**MODELS[name], mlp=mlp).to(device)
            ways[title] = step(model, x, labels)
            if options.compile:
                ways[f"{title} compiled"] = step(torch.compile(model), x, labels)
        times = turns(ways, device, options.rounds)
        row = {
            "model": name,
            "batch": batch,
            "ms": {way: quantiles(t) for way, t in times.items()},
            "ratio": ratio(times, "KAT", "ViT"),
        }
        if options.compile:
            row["ratio_compiled"] = ratio(times, "KAT compiled", "ViT compiled")
        rows.append(row)
        print(
            f"{name}, batch {batch}: "
            + ", ".join(f"{way} {q['p50']:.1f} ms" for way, q in row["ms"].items())
            + f"; KAT / ViT = {row['ratio']:.3f}",
            flush=True,
        )
        store(
            f"model-{slug(device)}",
            "training step, KAT and the same ViT with GELU MLPs",
            device,
            options.rounds,
            rows,
        )


if __name__ == "__main__":
    main()
