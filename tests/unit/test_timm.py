"""KAT in timm's registry: the same function as ours, the same start, timm's features, checkpointing, optimizer groups and data-parallel training."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import katlib

timm = pytest.importorskip("timm")
import katlib.timm

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10)


def create(**options):
    return timm.create_model("kat_tiny_patch16_224", **SMALL | options)


@pytest.mark.parametrize(
    "name, parameters", [("tiny", 5_718_328), ("small", 22_051_576), ("base", 86_568_568)]
)
def test_the_three_models_are_registered_with_the_released_sizes(name, parameters):
    name = f"kat_{name}_patch16_224"
    assert name in timm.list_models("kat*") and {name, f"{name}.vitft"} <= set(
        timm.list_pretrained("kat*")
    )
    with torch.device("meta"):
        ours = katlib.VisionTransformer(**katlib.pretrained.SIZES[name.split("_")[1]])
    entry = timm.create_model(name, depth=0, weight_init="skip")
    one = timm.create_model(name, depth=1, weight_init="skip")
    count = [sum(p.numel() for p in model.parameters()) for model in (entry, one, ours)]
    assert count[0] + 12 * (count[1] - count[0]) == count[2] == parameters
    assert (
        entry.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
        and entry.pretrained_cfg["hf_hub_id"] == f"adamdad/{name}"
    )


@torch.no_grad()
def test_logits_are_those_of_katlib_on_the_same_weights():
    theirs, ours = create().eval(), katlib.VisionTransformer(**SMALL).eval()
    for p in theirs.parameters():
        p.add_(0.1 * torch.randn_like(p))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(4, 3, 32, 32)
    assert_close(theirs(x), ours(x), atol=1e-5, rtol=1e-5)
    theirs.load_state_dict(katlib.VisionTransformer(**SMALL).state_dict(), strict=True)  # and back


@torch.no_grad()
def test_the_initialisation_survives_timms(monkeypatch):
    """timm draws every linear map with std 0.02 in its constructor, and whenever init_weights is called; ours must be what is left."""
    model = create(depth=2, embed_dim=192)
    head = model.head.weight.std().item()
    for _ in range(2):
        for block in model.blocks:
            assert block.mlp.fc1.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
            assert block.mlp.fc2.weight.std().item() == pytest.approx(
                (katlib.gain("swish") / 768) ** 0.5, rel=0.02
            )
            v = block.attn.qkv.weight[-192:]
            assert (block.attn.proj.weight @ v).diagonal().mean().item() == pytest.approx(
                -0.4, abs=0.03
            )  # mimetic
            y = block.mlp(torch.randn(64, 16, 192))
            assert 0.9 < y.std().item() < 1.1
        assert head == pytest.approx(0.02, rel=0.1)  # timm's, elsewhere
        model.init_weights()
    monkeypatch.delattr(katlib.timm.KAT, "init_weights")
    assert create(depth=1, embed_dim=192).blocks[0].mlp.fc1.weight.std().item() == pytest.approx(
        0.02, rel=0.03
    )  # what the test is about


def test_features_checkpointing_and_no_head():
    x = torch.randn(2, 3, 32, 32)
    model = create().eval()
    final, features = model.forward_intermediates(x, indices=[0, 2])
    assert final.shape == (2, 17, 48) and [f.shape for f in features] == [(2, 48, 4, 4)] * 2
    assert_close(model.forward_head(final), model(x))
    pyramid = create(features_only=True, out_indices=(1, 2))
    assert [f.shape for f in pyramid(x)] == [
        (2, 48, 4, 4)
    ] * 2 and pyramid.feature_info.channels() == [48, 48]
    assert create(num_classes=0)(x).shape == (2, 48)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)

    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_other_starts_groups_and_image_sizes():
    model = create(act_init=("identity", "gelu"), groups=4, dynamic_img_size=True).eval()
    assert model.blocks[0].mlp.act2.weight_denominator.shape == (4, 4)
    x = torch.linspace(-3, 3, 192)
    assert_close(model.blocks[0].mlp.act2(x), F.gelu(x), atol=2e-3, rtol=0)
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 10)
    assert create(global_pool="avg", class_token=False, reg_tokens=2, init_values=1e-5)(
        torch.randn(1, 3, 32, 32)
    ).shape == (1, 10)


def test_coefficients_do_not_decay():
    from timm.optim import create_optimizer_v2

    model = create()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        names[id(p)]
        for group in optimizer.param_groups
        if group["weight_decay"]
        for p in group["params"]
    }
    assert decayed and not any("act" in name or "pos_embed" in name for name in decayed)
    assert {"blocks.0.mlp.fc1.weight", "blocks.2.attn.qkv.weight"} <= decayed


def test_weights_of_flashkat_and_of_another_image_size_load(tmp_path):
    source = create()
    state = {
        name.replace("weight_numerator", "numerator_v").replace(
            "weight_denominator", "denominator_v"
        ): value
        for name, value in source.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "flash.pth")
    model = create(
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "flash.pth"), num_classes=10),
    )
    assert all(
        torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items()
    )
    larger = create(
        img_size=64,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / "flash.pth"), num_classes=10),
    )
    assert (
        larger.pos_embed.shape == (1, 65, 48) and larger(torch.randn(1, 3, 64, 64)).isfinite().all()
    )


@torch.no_grad()
def test_a_converted_vit_of_timms_goes_on_as_a_registered_kat():
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL)
    kat = katlib.from_vit(vit, degrees=(5, 4)).eval()
    model = create().eval()
    model.load_state_dict(kat.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert_close(model(x), kat(x))


TRAINING = """
import sys, timm, torch
from torch import distributed as dist
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = timm.create_model("kat_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)
parallel, average = torch.nn.parallel.DistributedDataParallel(model), ModelEmaV3(model, decay=0.9)
optimizer = create_optimizer_v2(model, "adamw", lr=3e-3, weight_decay=0.05)
scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=8)
mixup, loss_of = Mixup(mixup_alpha=0.1, num_classes=10), SoftTargetCrossEntropy()
labels = torch.arange(32) % 10
images = torch.randn(10, 3, 32, 32)[labels] + 0.1 * torch.randn(32, 3, 32, 32)
losses = []
for epoch in range(epochs):
    x, y = mixup(images[rank::world].clone(), labels[rank::world])
    loss = loss_of(parallel(x), y)
    optimizer.zero_grad()
    loss.backward()
    if epoch == 0:
        torch.save([p.grad for p in model.parameters()], f"{sys.argv[1]}/gradient{rank}.pt")
    optimizer.step()
    average.update(model)
    scheduler.step(epoch + 1)
    losses.append(loss.item())
model.eval()
torch.save({"losses": losses, "state": model.state_dict(), "average": average.module.state_dict()}, f"{sys.argv[1]}/rank{rank}.pt")
dist.destroy_process_group()
"""


def test_timms_training_runs_on_two_processes(tmp_path):
    """By the command of the book, `torchrun ... -m katlib.timm SCRIPT`: the script itself imports no katlib, the processes stay equal, and it learns."""
    (tmp_path / "train.py").write_text(TRAINING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={port}",
        "-m",
        "katlib.timm",
        str(tmp_path / "train.py"),
        str(tmp_path),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    assert all(
        map(torch.equal, *(torch.load(tmp_path / f"gradient{rank}.pt") for rank in range(2)))
    )
    assert (
        first["losses"][0] != second["losses"][0] and first["losses"][-1] < 0.8 * first["losses"][0]
    )


def test_the_command_says_how_it_is_used():
    done = subprocess.run(
        [sys.executable, "-m", "katlib.timm"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "usage: python -m katlib.timm SCRIPT.py" in done.stderr
