"""Exports a KAT for programs that have no katlib and no PyTorch, and checks what they compute: python examples/export.py kat.onnx

`torch.onnx.export` writes the rational functions as the multiplications, additions and one division that they are, which any ONNX runtime has; for that
it needs torch 2.7 or newer.
`torch.export` keeps them as one operator, `katlib::rational`, so a program that loads it has to import katlib, and gets its kernels.
"""

import argparse
from pathlib import Path

import torch

import katlib


def to_onnx(model: torch.nn.Module, images: torch.Tensor, path: Path) -> None:
    """Writes the model as ONNX, for any number of images of this size, weights included; `model.eval()` first."""
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the file to write, ending in .onnx")
    parser.add_argument(
        "--model",
        help="a name or a file for katlib.load_pretrained (default: a small KAT as it starts)",
    )
    opts = parser.parse_args()
    torch.manual_seed(0)
    model = (
        katlib.load_pretrained(opts.model)
        if opts.model
        else katlib.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10
        ).eval()
    )
    size = (model.patch_embed.proj.in_channels, model.img_size, model.img_size)
    to_onnx(model, torch.randn(2, *size), opts.path)

    import onnxruntime

    session = onnxruntime.InferenceSession(opts.path, providers=["CPUExecutionProvider"])
    images = torch.randn(5, *size)  # another number than was exported with
    with torch.no_grad():
        logits = model(images)
    theirs = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    print(
        f"{opts.path}: {opts.path.stat().st_size / 1e6:.1f} MB; onnxruntime's logits differ from katlib's by at most {(theirs - logits).abs().max():.1e}, "
        f"of {logits.abs().max():.1e}"
    )


if __name__ == "__main__":
    main()
