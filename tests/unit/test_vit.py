"""The Vision Transformer and KAT: names, shapes, twins, gradients, drop path."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from resets import RESETS, parents_first
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.architecture import Architecture
from katlib.vit import DropPath, attention

# names and shapes of the released KAT-T's parameters
KAT_TINY = Path(__file__).parent / "kat_tiny_keys.json"
SMALL = dict(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=10)


def test_names_and_shapes_are_the_released_kat_tinys():
    model = katlib.VisionTransformer(
        img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=1000
    )
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    assert shapes == json.loads(KAT_TINY.read_text())


def test_twins_start_equal_outside_their_mlps():
    states = []
    for mlp in ("grkan", "mlp"):
        torch.manual_seed(3)
        state = katlib.VisionTransformer(**SMALL, mlp=mlp).state_dict()
        states.append({name: value for name, value in state.items() if ".mlp." not in name})
    kat, twin = states
    assert list(kat) == list(twin)
    assert len(kat) > 20
    assert all(torch.equal(kat[name], twin[name]) for name in kat)


def test_every_parameter_gets_a_gradient():
    model = katlib.VisionTransformer(
        **SMALL, groups=4, numerator_groups=2, drop_path_rate=0.1, drop_rate=0.1
    )
    F.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10).backward()
    parameters = model.named_parameters()
    without = [name for name, p in parameters if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="must be"):
        katlib.VisionTransformer(**SMALL)(torch.randn(1, 3, 16, 16))


def test_a_model_knows_its_architecture():
    model = katlib.VisionTransformer(**SMALL, groups=4)
    assert model.architecture == Architecture(**SMALL, groups=4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(img_size=30, patch_size=16), "patch_size=16 does not divide img_size=30"),
        (dict(img_size=32, embed_dim=10, num_heads=3), "num_heads=3 does not divide"),
        (dict(img_size=32, mlp="kan", depth=1), "allowed are 'grkan', 'mlp'"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, words):
    with pytest.raises(ValueError, match=words):
        katlib.VisionTransformer(**arguments)


def test_a_kind_of_mlp_without_a_case_is_an_error(monkeypatch):
    """Not a GR-KAN under another name."""
    monkeypatch.setattr("katlib.architecture.MLPS", ("grkan", "mlp", "new"))
    with pytest.raises(NotImplementedError, match="mlp='new' has no case"):
        katlib.VisionTransformer(**SMALL, mlp="new")


def test_drop_path_keeps_the_mean():
    y = DropPath(0.25)(torch.ones(20_000, 2, 3))
    assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)


def test_drop_path_drops_whole_samples():
    y = DropPath(0.25)(torch.ones(2000, 2, 3)).flatten(1)
    assert (y.amax(1) == y.amin(1)).all()


def test_drop_path_does_nothing_in_evaluation():
    x = torch.ones(20, 2, 3)
    assert torch.equal(DropPath(0.25).eval()(x), x)


KINDS = ["grkan", "mlp"]
TINY = SMALL | dict(embed_dim=64, num_heads=2)


def materialise_one_by_one(model):
    """FSDP gives each module its memory and resets it before it comes to the next."""
    for module in model.modules():
        if list(module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()


def statistics_of(model):
    """Mean and standard deviation of each parameter, and the products of attention's weights."""
    found = {}
    for name, value in model.state_dict().items():
        value = value.double()
        found[name] = (value.mean().item(), value.std(unbiased=False).item())
    for i, block in enumerate(model.blocks):
        v = block.attn.qkv.weight.chunk(3)[2]
        found[f"product {i}"] = ((block.attn.proj.weight @ v).diagonal().mean().item(), 0.0)
    return found


def check_fresh(model, kind):
    """The model's parameters are distributed as those of a new one."""
    expected = statistics_of(katlib.VisionTransformer(**TINY, mlp=kind))
    for name, (mean, std) in statistics_of(model).items():
        wanted_mean, wanted_std = expected[name]
        # the class token has 64 numbers
        assert std == pytest.approx(wanted_std, rel=0.5 if name == "cls_token" else 0.15), name
        assert mean == pytest.approx(wanted_mean, abs=0.08), name


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("reset", RESETS)
def test_deferred_initialisation(kind, reset):
    with torch.device("meta"):
        model = katlib.VisionTransformer(**TINY, mlp=kind)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    reset(model)
    check_fresh(model, kind)


def test_modules_that_get_their_memory_one_by_one(kind):
    with torch.device("meta"):
        model = katlib.VisionTransformer(**TINY, mlp=kind)
    materialise_one_by_one(model)
    check_fresh(model, kind)


@pytest.mark.parametrize("reset", RESETS)
def test_a_reset_between_folds_forgets_what_was_learned(kind, reset):
    model = katlib.VisionTransformer(**TINY, mlp=kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3.0)
    reset(model)
    check_fresh(model, kind)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_reset_by_itself(kind, copied):
    model = katlib.VisionTransformer(**TINY, mlp=kind)
    before = copy.deepcopy(model.state_dict())
    twin = copied(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7.0)
    parents_first(twin)
    check_fresh(twin, kind)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_is_built_in_fake_tensor_mode(kind):
    with FakeTensorMode():
        model = katlib.VisionTransformer(**TINY, mlp=kind)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
        parents_first(model)


@pytest.fixture
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield dtype
    torch.set_default_dtype(before)


TYPES = [torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_model_of_the_default_type(kind, default_dtype):
    model = katlib.VisionTransformer(**TINY, mlp=kind)
    assert {p.dtype for p in model.parameters()} == {default_dtype}
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()
    torch.set_default_dtype(torch.float32)
    check_fresh(model.float(), kind)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_model_that_is_cast_computes_the_same(kind, dtype):
    model = katlib.VisionTransformer(**TINY, mlp=kind)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert_close(model.to(dtype)(x.to(dtype)).float(), expected, atol=0.02, rtol=0.05)


@pytest.fixture
def mesh(tmp_path):
    """One process that stands for all: what is tried is DTensor's dispatch."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_distributed_tensors_are_drawn_as_plain_ones(kind, mesh):
    """The same seed gives the same weights, sharded or not."""
    plain, sharded = (katlib.VisionTransformer(**TINY, mlp=kind) for _ in range(2))
    for module in sharded.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shards = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            setattr(module, name, torch.nn.Parameter(shards))
    for model in (plain, sharded):
        torch.manual_seed(1)
        parents_first(model)
    state = sharded.state_dict()
    assert all(isinstance(value, DTensor) for value in state.values())
    if kind == "grkan":
        assert katlib.gain(sharded.blocks[0].mlp.act2) == katlib.gain(plain.blocks[0].mlp.act2)
    for name, value in plain.state_dict().items():
        assert_close(state[name].full_tensor(), value, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_the_scaled_dot_product_of_pytorch_in_every_type(dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 17, 8, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v)
    result = attention(q.to(dtype), k.to(dtype), v.to(dtype))
    assert result.dtype == dtype
    assert_close(result.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=0.02)
