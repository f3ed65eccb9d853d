"""Files of weights: all that real programs write is read, and all that is wrong is a ValueError."""

import argparse
import collections
import copy
import json
import pathlib
import pickle
import time
import traceback
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import katlib
from katlib.weight_files import katlib_name, read_weights

SMALL = dict(
    img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, groups=4
)
HALF = dict(mean=[0.5] * 3, std=[0.5] * 3)
HEADER = {
    "architecture": json.dumps(SMALL),
    "mean": "[0.5, 0.5, 0.5]",
    "std": "[0.5, 0.5, 0.5]",
    "classes": json.dumps([f"class {i}" for i in range(10)]),
    "crop_pct": "0.9",
    "interpolation": '"bilinear"',
}


@pytest.fixture
def kat():
    return katlib.VisionTransformer(**SMALL).eval()


def is_same(model, state):
    loaded = model.state_dict()
    return loaded.keys() == state.keys() and all(
        torch.equal(loaded[name], state[name]) for name in state
    )


# ---- what real programs write beside the weights

BESIDE = {
    "NumPy's numbers": {"best": np.float64(0.5), "epoch": np.int64(3), "done": np.bool_(True)},
    "NumPy's float32": {"best": np.float32(0.5)},
    "NumPy's arrays": {"history": np.arange(3.0), "random": np.random.default_rng(0).bytes(3)},
    "NumPy's random state": {"random": np.random.RandomState(0).get_state()},
    "a path": {"folder": pathlib.Path("runs/kat")},
    "a Windows path": {"folder": pathlib.PureWindowsPath("C:/runs")},
    "a command line": {"args": argparse.Namespace(lr=1e-3, out=pathlib.Path("runs"))},
    "a simple namespace": {"args": types.SimpleNamespace(lr=1e-3)},
    "counters": {"seen": collections.Counter("aab"), "order": collections.OrderedDict(a=1)},
    "an optimizer": {"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{}]}},
}


@pytest.mark.parametrize("beside", BESIDE)
def test_a_checkpoint_may_hold_plain_objects(kat, tmp_path, beside):
    torch.save({"state_dict": kat.state_dict()} | BESIDE[beside], tmp_path / "x.pth")
    assert is_same(katlib.load_pretrained(tmp_path / "x.pth", num_heads=2), kat.state_dict())


def test_reading_leaves_torchs_list_of_safe_objects_as_it_is(kat, tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.save(kat.state_dict(), tmp_path / "x.pth")
    katlib.load_pretrained(tmp_path / "x.pth", num_heads=2)
    assert torch.serialization.get_safe_globals() == before


class Configuration:
    """As a training script may have it."""


def test_an_object_of_another_class_is_refused_by_its_name(kat, tmp_path):
    torch.save({"model": kat.state_dict(), "config": Configuration()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"would run \S*Configuration, of its author's choice"):
        katlib.load_pretrained(tmp_path / "x.pth", num_heads=2)


@pytest.mark.parametrize(
    "value",
    [np.array([1, "a"], dtype=object), np.zeros(1, dtype=[("a", "f8")])],
    ids=["objects", "records"],
)
def test_arrays_of_objects_and_records_are_refused(kat, tmp_path, value):
    torch.save({"model": kat.state_dict(), "x": value}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is damaged or no file of weights"):
        katlib.load_pretrained(tmp_path / "x.pth", num_heads=2)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_message_advises_to_read_a_file_that_runs_code(kat, tmp_path):
    """torch's own begins with how it is done, and a cause would show it."""
    torch.save({"config": Configuration()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"config": Configuration()}, protocol=4))
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError) as caught:
            katlib.load_pretrained(path)
        assert "weights_only" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "module.module.",
        "model.",
        "model._orig_mod.",
        "_fsdp_wrapped_module.",
    ],
)
def test_prefixes_of_wrappers_are_taken_off(kat, tmp_path, prefix):
    state = {prefix + name: value for name, value in kat.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    assert is_same(katlib.load_pretrained(tmp_path / "x.pth", num_heads=2), kat.state_dict())


def test_blocks_may_have_been_compiled_one_by_one():
    name = "blocks.3._orig_mod.mlp._checkpoint_wrapped_module.fc1.weight"
    assert katlib_name(name) == "blocks.3.mlp.fc1.weight"


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model", "model_ema", "model_state_dict", "state_dict_ema", "module"],
)
def test_weights_may_lie_under_a_key(kat, tmp_path, key):
    torch.save({"epoch": 3, key: kat.state_dict()}, tmp_path / "x.pth")
    assert is_same(katlib.load_pretrained(tmp_path / "x.pth", num_heads=2), kat.state_dict())


def test_an_average_of_torchs_counts_its_models_beside(kat, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(kat)
    torch.save(average.state_dict(), tmp_path / "x.pth")
    assert is_same(katlib.load_pretrained(tmp_path / "x.pth", num_heads=2), kat.state_dict())


def test_a_name_that_comes_twice_is_refused(kat, tmp_path):
    state = kat.state_dict()
    torch.save(state | {"module.norm.weight": state["norm.bias"]}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"holds 'norm\.weight' twice"):
        katlib.load_pretrained(tmp_path / "x.pth", num_heads=2)


ENDINGS = [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".SAFETENSORS", ".PT", ".tar", ""]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("writer", ["save_pretrained", "torch.save", "torch.save before 1.6"])
def test_whatever_ending_is_written_can_be_read(kat, tmp_path, ending, writer):
    path = tmp_path / f"kat{ending}"
    if writer == "save_pretrained":
        katlib.save_pretrained(kat, path, **HALF)
    else:
        modern = writer == "torch.save"
        torch.save(kat.state_dict(), path, _use_new_zipfile_serialization=modern)
    assert katlib.load_pretrained(path, num_heads=2).architecture.embed_dim == 32


class TestACheckpointOfTimmsScript:
    """It names the registered model and keeps the command line."""

    def load(self, kat, tmp_path, **command_line):
        args = argparse.Namespace(**command_line)
        content = {"arch": "kat_tiny_patch16_224", "state_dict": kat.state_dict(), "args": args}
        torch.save(content, tmp_path / "x.pth.tar")
        return katlib.load_pretrained(tmp_path / "x.pth.tar")

    @pytest.fixture
    def kat(self):
        return katlib.VisionTransformer(**SMALL | {"embed_dim": 48, "num_heads": 3})

    def test_says_its_heads_and_images(self, kat, tmp_path):
        model = self.load(kat, tmp_path, mean=None, std=(0.5, 0.5, 0.5), gp=None, model_kwargs={})
        assert model.architecture.num_heads == 3
        assert model.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
        assert model.pretrained_cfg["std"] == (0.5, 0.5, 0.5)

    def test_may_have_other_heads(self, kat, tmp_path):
        model = self.load(kat, tmp_path, model_kwargs={"num_heads": 6, "proj_drop_rate": 0.1})
        assert model.architecture.num_heads == 6

    @pytest.mark.parametrize(
        "command_line",
        [
            dict(gp="avg"),
            dict(model_kwargs={"global_pool": "avg", "fc_norm": False}),
            dict(model_kwargs={"scale_attn_norm": True}),
        ],
        ids=str,
    )
    def test_is_refused_for_what_katlib_does_not_have(self, kat, tmp_path, command_line):
        with pytest.raises(ValueError, match=r"(global_pool='avg'|scale_attn.*), which katlib"):
            self.load(kat, tmp_path, **command_line)


class TestACheckpointOfKatlibTrain:
    """It says how the model was trained and, of images of the user's, what they are like."""

    def load(self, tmp_path, options, **run):
        model = katlib.VisionTransformer(**SMALL | options)
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        config = {"num_heads": 2, "stem": "patch", "global_pool": "token", "lr": 0.1} | options
        run = {"mlp": options.get("mlp", "grkan"), "config": config} | run
        save_file(state, tmp_path / "x.safetensors", {"state": json.dumps({"run": run})})
        return model, katlib.load_pretrained(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        "options",
        [{}, {"mlp": "relu2"}, {"mlp": "mlp"}, {"stem": "conv", "global_pool": "seq"}],
        ids=str,
    )
    @torch.no_grad()
    def test_says_what_its_tensors_do_not_show(self, tmp_path, options):
        model, loaded = self.load(tmp_path, options)
        x = torch.randn(2, 3, 32, 32)
        assert torch.allclose(loaded(x), model.eval()(x), atol=1e-5)

    def test_says_what_the_images_are_like(self, tmp_path):
        images = {"mean": [0.5] * 3, "std": [0.25] * 3, "classes": [f"{i}" for i in range(10)]}
        cfg = self.load(tmp_path, {}, images=images)[1].pretrained_cfg
        assert (cfg["mean"], cfg["std"], cfg["classes"][3]) == ((0.5,) * 3, (0.25,) * 3, "3")

    def test_is_of_cifar_10_where_it_does_not_say(self, tmp_path):
        cfg = self.load(tmp_path, {})[1].pretrained_cfg
        assert cfg["classes"][3] == "cat"


def test_several_threads_may_read_at_once(kat, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": kat.state_dict(), "best": np.float64(0.5)}, path)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: katlib.load_pretrained(path, num_heads=2), range(32)))
    assert all(is_same(model, kat.state_dict()) for model in models)


# ---- models that are handed over in their wrappers


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model):
    return torch.compile(model)


def parallel(model):
    return nn.parallel.DistributedDataParallel(model)


WRAPPERS = {
    "compiled": compiled,
    "parallel": parallel,
    "compiled, then parallel": lambda model: parallel(compiled(model)),
    "parallel, then compiled": lambda model: compiled(parallel(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_saved_as_the_model_within(kat, tmp_path, one_process, wrapper):
    path = tmp_path / "x.safetensors"
    katlib.save_pretrained(WRAPPERS[wrapper](kat), path, **HALF)
    model = katlib.load_pretrained(path)
    assert model.architecture == kat.architecture
    assert torch.allclose(model.head.weight, kat.head.weight, atol=1e-4)


def test_a_model_without_numbers_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = katlib.VisionTransformer(**SMALL)
    with pytest.raises(ValueError, match="gather the weights"):
        katlib.save_pretrained(model, tmp_path / "x.safetensors", **HALF)


# ---- malformed files


def changed_header(**changes):
    """A change of the header; values are put as JSON."""
    return lambda state, header: header.update(
        {name: json.dumps(value) for name, value in changes.items()}
    )


def changed_architecture(**changes):
    return changed_header(architecture=SMALL | changes)


def changed_tensor(name, change):
    return lambda state, header: state.update({name: change(state[name])})


def renamed(old, new):
    return lambda state, header: state.update({new: state.pop(old)})


def without(name):
    return lambda state, header: state.pop(name)


def every_tensor(change):
    return lambda state, header: state.update({k: change(v) for k, v in state.items()})


def text(name, value):
    return lambda state, header: header.update({name: value})


BILLION = 10**9
Q = "blocks.0.attn.qkv.weight"
A = "blocks.1.mlp.act1.weight_numerator"
# what is wrong with a good file
MALFORMED = {
    "unknown architecture": changed_header(architecture="vit_tiny"),
    "architecture is a number": changed_header(architecture=5),
    "architecture is null": changed_header(architecture=None),
    "architecture is no JSON": text("architecture", "{"),
    "architecture is empty text": text("architecture", ""),
    "architecture nested too deep": text("architecture", "[" * 100_000),
    "foreign field": changed_architecture(rope=True),
    "unknown mlp": changed_architecture(mlp="kan"),
    "mlp of a wrong type": changed_architecture(mlp=["grkan"]),
    "another mlp": changed_architecture(mlp="mlp"),
    "a billion classes": changed_architecture(num_classes=BILLION),
    "a million classes": changed_architecture(num_classes=10**6),
    "a million channels": changed_architecture(embed_dim=10**6),
    "a billion in the degrees": changed_architecture(
        degrees=[BILLION, 4], act_init=["identity"] * 2
    ),
    "both degrees": changed_architecture(degrees=[1, BILLION], act_init=["identity"] * 2),
    "degrees below 0": changed_architecture(degrees=[-1, 4]),
    "a million pixels": changed_architecture(img_size=8 * 10**5),
    "a thousand blocks": changed_architecture(depth=1000),
    "no blocks": changed_architecture(depth=0),
    "other heads": changed_architecture(num_heads=0),
    "heads as text": changed_architecture(num_heads="2"),
    "not a number of heads": text("architecture", json.dumps(SMALL | {"num_heads": float("nan")})),
    "infinite ratio": changed_architecture(mlp_ratio=float("inf")),
    "endless number": changed_architecture(embed_dim=10**400),
    "mean is a number": changed_header(mean=5),
    "mean is empty": changed_header(mean=[]),
    "mean is not finite": changed_header(mean=[float("nan")] * 3),
    "mean is endless": changed_header(mean=[10**400] * 3),
    "std is 0": changed_header(std=[0, 0, 0]),
    "std of true": changed_header(std=[True, True, True]),
    "std is text": text("std", "half"),
    "classes are a number": changed_header(classes=10),
    "classes are numbers": changed_header(classes=list(range(10))),
    "too few classes": changed_header(classes=["cat"]),
    "crop_pct is text": changed_header(crop_pct="all"),
    "crop_pct is 0": changed_header(crop_pct=0),
    "interpolation is a number": changed_header(interpolation=3),
    "state of another program": changed_header(state={"epoch": 3}),
    "state is a number": changed_header(state=3),
    "state without a config": changed_header(state={"run": {"config": 3, "mlp": "grkan"}}),
    "empty pos_embed": changed_tensor("pos_embed", lambda t: t[:, :0]),
    "pos_embed of two axes": changed_tensor("pos_embed", lambda t: t[0]),
    "scalar norm": changed_tensor("norm.weight", lambda t: t[0]),
    "NaN": changed_tensor(Q, lambda t: t / 0 * 0),
    "infinite": changed_tensor(A, lambda t: t * float("inf")),
    "whole numbers": changed_tensor(Q, lambda t: t.int()),
    "truth values": changed_tensor(Q, lambda t: t > 0),
    "transposed": changed_tensor(Q, lambda t: t.T.contiguous()),
    "tensor missing": without("head.bias"),
    "patch embedding missing": without("patch_embed.proj.weight"),
    "tensor renamed": renamed("head.bias", "head.offset"),
    "block renamed": renamed(Q, "blocks.x.attn.qkv.weight"),
    "endless block": renamed(Q, "blocks.99999999999.attn.qkv.weight"),
    "name without a part": renamed(Q, "."),
    "too large for float32": every_tensor(lambda t: t.double() * 1e300 + 1e300),
}
HARMLESS = {
    "nothing": lambda state, header: None,
    "no classes": lambda state, header: header.pop("classes"),
    "no mean": lambda state, header: header.pop("mean"),
    "more metadata": changed_header(note={"any": ["thing"]}, license="MIT"),
    "float64": every_tensor(torch.Tensor.double),
    "bfloat16": every_tensor(torch.Tensor.bfloat16),
}


def load_at_once(path, **given):
    start = time.perf_counter()
    try:
        return katlib.load_pretrained(path, **given)
    finally:
        # a busy machine may be slow, but what is allocated takes far longer
        assert time.perf_counter() - start < 10


@pytest.mark.parametrize("change", MALFORMED)
def test_a_malformed_file_is_a_value_error_at_once(kat, tmp_path, change):
    state, header = dict(kat.state_dict()), dict(HEADER)
    MALFORMED[change](state, header)
    path = tmp_path / "x.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path, header)
    with pytest.raises(ValueError, match=r"x\.safetensors") as caught:
        load_at_once(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("change", HARMLESS)
def test_a_harmless_change_of_a_file_is_none(kat, tmp_path, change):
    state, header = dict(kat.state_dict()), dict(HEADER)
    HARMLESS[change](state, header)
    save_file(state, tmp_path / "x.safetensors", header)
    model = load_at_once(tmp_path / "x.safetensors")
    assert torch.allclose(model.head.weight, kat.head.weight, atol=1e-3)


# only in PyTorch's own format; safetensors can hold none of these
STRANGE_TENSORS = {
    "a billion from one number": lambda t: torch.zeros(1).expand(BILLION, 32),
    "sparse": torch.Tensor.to_sparse,
    "sparse rows": torch.Tensor.to_sparse_csr,
    "complex": lambda t: t + 1j,
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "on the meta device": lambda t: t.to("meta"),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "whole numbers": torch.Tensor.long,
    "none": lambda t: None,
    "text": lambda t: "weights",
    "a dictionary": lambda t: {"weight": t},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("strange", STRANGE_TENSORS)
@pytest.mark.parametrize("name", [Q, "pos_embed"])
def test_tensors_that_are_no_weights_are_a_value_error_at_once(kat, tmp_path, strange, name):
    state = kat.state_dict()
    value = state[name] if state[name].ndim == 2 else state[name][0]
    state[name] = STRANGE_TENSORS[strange](value)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_at_once(tmp_path / "x.pth", num_heads=2)


FOREIGN = {
    "list": [1, 2],
    "number": 3,
    "nothing": None,
    "text": "weights",
    "wrapper around nothing": {"state_dict": {}},
    "wrapper around a number": {"model": 3},
    "wrapper without weights": {"state_dict": {"epoch": 3}},
    "names that are numbers": {1: torch.zeros(2)},
    "empty names": {"": torch.zeros(2)},
    "arch of another type": {"arch": ["kat"], "state_dict": {"a": torch.zeros(2)}},
    "command line of another type": {
        "arch": "kat_tiny_patch16_224",
        "args": argparse.Namespace(model_kwargs=3, gp=["avg"]),
        "state_dict": {"a": torch.zeros(2)},
    },
}


@pytest.mark.parametrize("content", FOREIGN)
def test_what_is_no_model_of_ours_is_a_value_error(tmp_path, content):
    torch.save(FOREIGN[content], tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth"):
        katlib.load_pretrained(tmp_path / "x.pth")


def test_a_folder_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="is a folder; give the path of a file"):
        katlib.load_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"\xff" * 9, b"\0" * 7 + b"{{"], ids=repr
)
def test_a_few_bytes_are_a_value_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or no file of weights"):
        katlib.load_pretrained(tmp_path / name)


def test_an_archive_of_something_else_is_a_value_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("notes.txt", "no weights")
    with pytest.raises(ValueError, match="is damaged or no file of weights"):
        katlib.load_pretrained(tmp_path / "x.pth")


@pytest.mark.parametrize("cut", [1, 100, 10_000])
@pytest.mark.parametrize("writer", [katlib.save_pretrained, torch.save])
def test_a_truncated_file_is_a_value_error(kat, tmp_path, writer, cut):
    path = tmp_path / "x"
    if writer is torch.save:
        torch.save(kat.state_dict(), path)
    else:
        katlib.save_pretrained(kat, path, **HALF)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="is damaged or no file of weights"):
        katlib.load_pretrained(path, num_heads=2)


def test_weights_that_share_memory_become_each_others_copies(kat, tmp_path):
    """Two matrices may be one in the model of a file; in the loaded one each learns by itself."""
    tied = copy.deepcopy(kat)
    tied.blocks[1].attn.proj = tied.blocks[0].attn.proj
    torch.save(tied.state_dict(), tmp_path / "x.pth")
    model = katlib.load_pretrained(tmp_path / "x.pth", num_heads=2)
    first, second = (block.attn.proj.weight for block in model.blocks)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_model_whose_blocks_share_weights_is_saved(kat, tmp_path, dtype):
    kat.blocks[1].attn.proj = kat.blocks[0].attn.proj
    katlib.save_pretrained(kat.to(dtype), tmp_path / "x.safetensors", **HALF)
    stored = load_file(tmp_path / "x.safetensors")
    assert torch.equal(*(stored[f"blocks.{i}.attn.proj.weight"] for i in (0, 1)))


def test_what_a_file_says_is_returned_beside_its_tensors(kat, tmp_path):
    save_file(kat.state_dict(), tmp_path / "x.safetensors", HEADER)
    weights = read_weights(tmp_path / "x.safetensors")
    assert weights.header["crop_pct"] == 0.9
    assert weights.tensors.keys() == kat.state_dict().keys()
