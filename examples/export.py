"""Exports a KAT for programs that have no katlib and no PyTorch, and checks what they compute.

    python examples/export.py kat.onnx [--model kat-cifar10]

`torch.onnx.export` writes the rational functions as the multiplications, additions and one division
that they are, which any ONNX runtime has; it needs torch 2.7 or newer for that. `torch.export`
keeps them as one operator, `katlib::rational`: a program that loads such a file has to import
katlib, and then runs its kernels.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import katlib


def to_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Writes the model with its weights as ONNX, for any number of images of this size.

    Call `model.eval()` before.
    """
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


def load_model(name: str | None) -> katlib.VisionTransformer:
    """A pretrained model, or where no name is given a small KAT as it starts."""
    if name:
        return katlib.load_pretrained(name)
    model = katlib.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=10
    )
    return model.eval()


def logits_by_onnxruntime(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(logits)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the file to write, ending in .onnx")
    parser.add_argument(
        "--model",
        help="a name or a file for katlib.load_pretrained (default: a small KAT as it starts)",
    )
    return parser.parse_args()


def main() -> None:
    opts = parse_arguments()
    torch.manual_seed(0)
    model = load_model(opts.model)
    image_shape = (model.patch_embed.proj.in_channels, model.img_size, model.img_size)
    to_onnx(model, torch.randn(2, *image_shape), opts.path)

    # another number of images than the model was exported with
    images = torch.randn(5, *image_shape)
    with torch.no_grad():
        logits = model(images)
    difference = (logits_by_onnxruntime(opts.path, images) - logits).abs().max()
    print(
        f"{opts.path}: {opts.path.stat().st_size / 1e6:.1f} MB; onnxruntime's logits differ from "
        f"katlib's by at most {difference:.1e}, of {logits.abs().max():.1e}"
    )


if __name__ == "__main__":
    main()
