"""Trained weights: released names and shapes, other programs' files, our own format, and files that must be refused."""

import argparse
import http.server
import json
import os
import pickle
import random
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

import katlib
from katlib import pretrained

RELEASED = json.loads(
    (Path(__file__).parent / "kat_tiny_keys.json").read_text()
)  # names and shapes of the released KAT-T's parameters
SMALL = dict(
    img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, groups=4
)


@pytest.fixture
def kat():
    model = katlib.VisionTransformer(**SMALL).eval()
    with torch.no_grad():  # away from where all models start
        for name, p in model.named_parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def released():
    """A state dict like the released KAT-T's: its names and shapes, other numbers."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: 0.02 * torch.randn(shape, generator=generator) for name, shape in RELEASED.items()
    }


def same(model, state):
    loaded = model.state_dict()
    return loaded.keys() == state.keys() and all(
        torch.equal(loaded[name], state[name]) for name in state
    )


def test_the_released_names_and_shapes_load_strictly(released, tmp_path):
    save_file(released, tmp_path / "model.safetensors")
    model = katlib.load_pretrained(tmp_path / "model.safetensors")
    assert same(model, released) and not model.training
    assert (
        sum(p.numel() for p in model.parameters()) == 5_718_328
        and model.blocks[0].attn.num_heads == 3
    )
    cfg = model.pretrained_cfg
    assert (
        cfg["mean"] == (0.485, 0.456, 0.406)
        and cfg["std"] == (0.229, 0.224, 0.225)
        and cfg["crop_pct"] == 0.875
    )
    assert cfg["input_size"] == (3, 224, 224) and cfg["num_classes"] == 1000
    assert katlib.VisionTransformer(**cfg["architecture"] | {"depth": 1}).pos_embed.shape == (
        1,
        197,
        192,
    )
    assert model(torch.randn(1, 3, 224, 224)).isfinite().all()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {
            "state_dict": s,
            "epoch": 3,
            "args": argparse.Namespace(lr=1e-3),
            "optimizer": {"state": {}},
        },
        lambda s: {
            "state_dict": {k: torch.zeros_like(v) for k, v in s.items()},
            "state_dict_ema": s,
        },
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {
            k.replace("weight_numerator", "numerator_v").replace(
                "weight_denominator", "denominator_v"
            ): v
            for k, v in s.items()
        },
    ],
    ids=["plain", "model", "timm's checkpoint", "averaged weights", "DDP", "compiled", "FlashKAT"],
)
def test_pytorch_files_in_all_their_wrappings(kat, tmp_path, wrap):
    state = kat.state_dict()
    torch.save(wrap(state), tmp_path / "kat.pth")
    assert same(katlib.load_pretrained(tmp_path / "kat.pth", num_heads=2), state)


def test_our_own_format_is_half_as_large_and_says_everything(kat, tmp_path):
    path = tmp_path / "kat.safetensors"
    katlib.save_pretrained(
        kat,
        path,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        classes=[f"class {i}" for i in range(10)],
        test_accuracy=0.5,
    )
    with safe_open(path, "pt") as file:
        header = file.metadata()
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}
    assert (
        json.loads(header["architecture"])["groups"] == 4
        and json.loads(header["mean"]) == [0.1, 0.2, 0.3]
        and header["test_accuracy"] == "0.5"
    )
    assert all((dtype == torch.float32) == ("act" in name) for name, dtype in dtypes.items())
    model = katlib.load_pretrained(path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.pretrained_cfg["classes"][3] == "class 3" and model.pretrained_cfg["std"] == (
        0.4,
        0.5,
        0.6,
    )
    assert model.pretrained_cfg["input_size"] == (3, 32, 32) and model.blocks[0].attn.num_heads == 2
    assert model.pretrained_cfg["crop_pct"] == 1.0  # the whole image, not ImageNet's 87.5% of it
    x = torch.randn(4, 3, 32, 32)
    assert_close(model(x), kat(x), atol=5e-3, rtol=5e-3)
    katlib.save_pretrained(
        model, tmp_path / "again.safetensors"
    )  # mean, std and classes go on with the model
    assert same(katlib.load_pretrained(tmp_path / "again.safetensors"), model.state_dict())
    assert sorted(os.listdir(tmp_path)) == [
        "again.safetensors",
        "kat.safetensors",
    ] and path.stat().st_size < 0.6 * 4 * sum(p.numel() for p in kat.parameters())


@pytest.mark.parametrize(
    "options",
    [
        dict(mlp="mlp"),
        dict(degrees=(3, 2)),
        dict(numerator_groups=4, mlp_ratio=3.0),
        dict(degrees=(2, 1), act_init=[([0.0, 1.0, 0.1], [0.1])] * 2),
        dict(in_chans=1, patch_size=4),
        dict(groups=None, numerator_groups=None),
    ],
    ids=str,
)
def test_every_architecture_is_read_off_its_tensors(options, tmp_path):
    model = katlib.VisionTransformer(**SMALL | options)
    katlib.save_pretrained(model, tmp_path / "x.safetensors", mean=[0.5] * 3, std=[0.5] * 3)
    again = katlib.load_pretrained(tmp_path / "x.safetensors")
    assert {name: p.shape for name, p in again.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    katlib.VisionTransformer(**again.pretrained_cfg["architecture"])  # the arguments are whole


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_training_leaves_can_be_loaded(tiny_data, tmp_path, ema):
    """With an average of the weights, it is the average that training evaluates and that is loaded."""
    from katlib.train import train
    from katlib.train.recipe import Config

    trained = {}
    train(
        Config(patch_size=8, embed_dim=24, depth=2, num_heads=3, ema=ema),
        epochs=1,
        data=tiny_data,
        progress=False,
        device="cpu",
        out=tmp_path,
        on_epoch=lambda model, epoch: trained.update(model.state_dict()),
    )
    model = katlib.load_pretrained(tmp_path / "checkpoint.safetensors")
    assert same(model, trained) and model.blocks[0].attn.num_heads == 3
    assert (
        model.pretrained_cfg["mean"] == katlib.train.data.MEAN
        and model.pretrained_cfg["classes"][0] == "airplane"
    )


def test_the_model_that_comes_with_katlib(kat, tmp_path, monkeypatch):
    monkeypatch.setitem(pretrained.OURS, "kat-cifar10", tmp_path / "kat-cifar10.safetensors")
    with pytest.raises(FileNotFoundError, match="not in this installation"):
        katlib.load_pretrained("kat-cifar10")
    katlib.save_pretrained(
        kat,
        tmp_path / "kat-cifar10.safetensors",
        mean=katlib.train.data.MEAN,
        std=katlib.train.data.STD,
        classes=katlib.train.data.CLASSES,
    )
    model = katlib.load_pretrained("kat-cifar10")
    assert (
        model.pretrained_cfg["source"] == "kat-cifar10"
        and model.pretrained_cfg["classes"][9] == "truck"
    )


def test_saving_says_what_is_missing(kat, tmp_path):
    with pytest.raises(ValueError, match="mean and std"):
        katlib.save_pretrained(kat, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="3 classes are named; the model has 10"):
        katlib.save_pretrained(
            kat, tmp_path / "x.safetensors", mean=[0.5] * 3, std=[0.5] * 3, classes="abc"
        )
    with torch.no_grad():
        kat.blocks[1].norm1.weight[0] = 1e5
    with pytest.raises(ValueError, match="blocks.1.norm1.weight .*65504"):
        katlib.save_pretrained(kat, tmp_path / "x.safetensors", mean=[0.5] * 3, std=[0.5] * 3)
    assert not list(tmp_path.iterdir())


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(kat, tmp_path):
    evil = Malicious()
    evil.path = tmp_path / "it_ran"
    torch.save(kat.state_dict() | {"x": evil}, tmp_path / "kat.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"x": evil}, protocol=2))
    for name in ("kat.pth", "old.pth"):
        with pytest.raises(ValueError, match="would run posix.system.*It was not read"):
            katlib.load_pretrained(tmp_path / name)
    assert not evil.path.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_refused_with_a_message(kat, tmp_path, suffix):
    """Cut short, or with wrong bytes in its header: always a ValueError that names the file, never another error."""
    whole = tmp_path / f"whole{suffix}"
    katlib.save_pretrained(
        kat, whole, mean=[0.5] * 3, std=[0.5] * 3
    ) if suffix == ".safetensors" else torch.save(kat.state_dict(), whole)
    content = whole.read_bytes()
    path, draw = tmp_path / f"damaged{suffix}", random.Random(0)
    damaged = [
        b"",
        b"x" * 1000,
        content[:100],
        content[: len(content) // 2],
        content[:-1],
        content[len(content) // 2 :],
    ]
    for _ in range(40):
        wrong = bytearray(content)
        for _ in range(20):
            wrong[draw.randrange(300)] = draw.randrange(256)
        damaged.append(bytes(wrong))
    refused = 0
    for wrong in damaged:
        path.write_bytes(wrong)
        try:
            katlib.load_pretrained(path, num_heads=2)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 40


def test_other_shapes_and_names_are_refused_in_one_line(released, tmp_path):
    cases = {
        "1 tensors have another shape .blocks.3.mlp.fc1.bias .767,. for .768,..": released
        | {"blocks.3.mlp.fc1.bias": torch.zeros(767)},
        "1 are missing .blocks.11.norm2.bias.": {
            name: value for name, value in released.items() if name != "blocks.11.norm2.bias"
        },
        "2 are not of this model .reg, reg2.": released
        | {"reg": torch.zeros(1), "reg2": torch.zeros(1)},
        "not finite in 1 tensors, norm.weight": released
        | {"norm.weight": torch.full((192,), float("nan"))},
        "no Vision Transformer that katlib knows.*begin with conv1.weight": {
            "conv1.weight": torch.zeros(3, 3)
        },
    }
    for words, state in cases.items():
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=words):
            katlib.load_pretrained(tmp_path / "x.safetensors")
    for content in ([1, 2], {"model": 3}, {}, torch.zeros(2)):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="holds no state dict"):
            katlib.load_pretrained(tmp_path / "x.pth")


def test_an_unknown_name_says_which_are_known():
    with pytest.raises(
        FileNotFoundError,
        match="'kat_huge' is neither a file nor a name that is known .kat_tiny_patch16_224, kat_tiny_patch16_224.vitft.*kat-cifar10",
    ):
        katlib.load_pretrained("kat_huge")
    assert (
        len(pretrained.OFFICIAL) == 6
        and pretrained.OFFICIAL["kat_base_patch16_224.vitft"]
        == "adamdad/kat_base_patch16_224.vitft"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine: what lies in the folder it yields is served under /adamdad/NAME/resolve/main/FILE."""
    constants = pytest.importorskip("huggingface_hub.constants")
    served = tmp_path / "served"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self, body=False):
            _, owner, name, _, _, file = self.path.split("/")
            path = served / owner / name / file
            content = path.read_bytes() if path.exists() else b""
            self.send_response(200 if path.exists() else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header(
                "X-Error-Code",
                "EntryNotFound" if (served / owner / name).exists() else "RepoNotFound",
            ) if not path.exists() else None
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content) if body else None

        def do_GET(self):
            self.do_HEAD(body=True)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):
        monkeypatch.setattr(
            constants,
            name,
            getattr(constants, name).replace(
                constants.ENDPOINT, f"http://127.0.0.1:{server.server_port}"
            ),
        )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served / "adamdad"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_released_model_is_fetched_by_its_name(hub, released, file):
    folder = hub / "kat_tiny_patch16_224.vitft"
    folder.mkdir(parents=True)
    save_file(released, folder / file) if file.endswith("safetensors") else torch.save(
        released, folder / file
    )
    model = katlib.load_pretrained("kat_tiny_patch16_224.vitft")
    assert same(model, released) and model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    (folder / "config.json").write_text(
        json.dumps({"architecture": "kat", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    assert katlib.load_pretrained("kat_tiny_patch16_224.vitft").pretrained_cfg["mean"] == (
        0.5,
        0.5,
        0.5,
    )  # as the hub says it


def test_a_file_of_another_size_than_its_name_says_is_refused(hub, released):
    (hub / "kat_small_patch16_224").mkdir(parents=True)
    save_file(released, hub / "kat_small_patch16_224" / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"does not fit the model: 151 tensors have another shape .* \(1, 1, 192\) for \(1, 1, 384\)",
    ):
        katlib.load_pretrained("kat_small_patch16_224")


def test_without_a_hub_the_error_says_what_to_do(hub, monkeypatch):
    words = r"(?s)could not be fetched.*download https://huggingface.co/adamdad/kat_tiny_patch16_224/resolve/main/model.safetensors.*pass its path"
    with pytest.raises(ConnectionError, match=words):
        katlib.load_pretrained("kat_tiny_patch16_224")  # a hub that knows no such repository
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=words):
        katlib.load_pretrained("kat_tiny_patch16_224")
    (hub / "kat_base_patch16_224").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match="neither model.safetensors nor pytorch_model.bin"):
        katlib.load_pretrained("kat_base_patch16_224")


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        katlib.load_pretrained("kat_tiny_patch16_224")


def test_a_model_that_waits_for_its_weights_draws_none():
    model = pretrained.build(SMALL)
    assert model.state_dict().keys() == katlib.VisionTransformer(
        **SMALL
    ).state_dict().keys() and not any(p.is_meta for p in model.parameters())
