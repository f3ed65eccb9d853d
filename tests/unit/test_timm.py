"""KAT in timm's registry: the same function and start as ours, with all that timm offers."""

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
from katlib.architecture import KAT_BASE, KAT_SMALL, KAT_TINY

timm = pytest.importorskip("timm")
pytest.importorskip("katlib.timm")

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10)


def create(**options):
    return timm.create_model("kat_tiny_patch16_224", **SMALL | options)


SIZES = pytest.mark.parametrize(
    "name, architecture, parameters",
    [
        ("kat_tiny_patch16_224", KAT_TINY, 5_718_328),
        ("kat_small_patch16_224", KAT_SMALL, 22_051_576),
        ("kat_base_patch16_224", KAT_BASE, 86_568_568),
    ],
)


@SIZES
class TestTheThreeModels:
    def test_are_registered(self, name, architecture, parameters):
        assert name in timm.list_models("kat*")
        assert {name, f"{name}.vitft"} <= set(timm.list_pretrained("kat*"))

    def test_have_the_released_sizes(self, name, architecture, parameters):
        """Counted from models of no and of one block, which are quickly made."""
        none, one = (
            sum(
                p.numel() for p in timm.create_model(name, depth=n, weight_init="skip").parameters()
            )
            for n in (0, 1)
        )
        assert none + 12 * (one - none) == parameters

    def test_are_those_of_katlib(self, name, architecture, parameters):
        with torch.device("meta"):
            ours = katlib.VisionTransformer(**architecture.as_dict())
        assert sum(p.numel() for p in ours.parameters()) == parameters

    def test_say_what_images_they_take_and_where_their_weights_are(
        self, name, architecture, parameters
    ):
        cfg = timm.create_model(name, depth=0, weight_init="skip").pretrained_cfg
        assert cfg["mean"] == (0.485, 0.456, 0.406)
        assert cfg["hf_hub_id"] == f"adamdad/{name}"


@pytest.fixture
def pair():
    """A model of timm's registry and ours, with the same weights."""
    theirs, ours = create().eval(), katlib.VisionTransformer(**SMALL).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def test_logits_are_those_of_katlib_on_the_same_weights(pair):
    theirs, ours = pair
    x = torch.randn(4, 3, 32, 32)
    assert_close(theirs(x), ours(x), atol=1e-5, rtol=1e-5)


def test_weights_of_katlib_load_strictly():
    create().load_state_dict(katlib.VisionTransformer(**SMALL).state_dict(), strict=True)


@pytest.fixture(scope="module", params=["constructor", "init_weights"])
def started(request):
    """A wide model as it starts, by its constructor alone and after another `init_weights`."""
    torch.manual_seed(0)
    model = create(depth=2, embed_dim=192)
    if request.param == "init_weights":
        model.init_weights()
    return model


class TestTheInitialisation:
    """timm draws every linear map with std 0.02; what is left must be ours."""

    def test_of_the_mlps_preserves_variance(self, started):
        for block in started.blocks:
            fc1, fc2 = block.mlp.fc1.weight, block.mlp.fc2.weight
            assert fc1.std().item() == pytest.approx(192**-0.5, rel=0.02)
            assert fc2.std().item() == pytest.approx((katlib.gain("swish") / 768) ** 0.5, rel=0.02)

    @torch.no_grad()
    def test_keeps_the_size_of_a_signal(self, started):
        for block in started.blocks:
            assert 0.9 < block.mlp(torch.randn(64, 16, 192)).std().item() < 1.1

    @torch.no_grad()
    def test_of_the_attention_is_mimetic(self, started):
        for block in started.blocks:
            v = block.attn.qkv.weight[-192:]
            diagonal = (block.attn.proj.weight @ v).diagonal()
            assert diagonal.mean().item() == pytest.approx(-0.4, abs=0.03)

    def test_is_timms_elsewhere(self, started):
        assert started.head.weight.std().item() == pytest.approx(0.02, rel=0.1)

    def test_would_be_timms_everywhere_without_ours(self, monkeypatch):
        monkeypatch.delattr(katlib.timm.KAT, "init_weights")
        fc1 = create(depth=1, embed_dim=192).blocks[0].mlp.fc1
        assert fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)


class TestTimmsFeatures:
    @pytest.fixture
    def x(self):
        return torch.randn(2, 3, 32, 32)

    def test_intermediates(self, x):
        model = create().eval()
        final, features = model.forward_intermediates(x, indices=[0, 2])
        assert final.shape == (2, 17, 48)
        assert [f.shape for f in features] == [(2, 48, 4, 4)] * 2
        assert_close(model.forward_head(final), model(x))

    def test_a_pyramid(self, x):
        pyramid = create(features_only=True, out_indices=(1, 2))
        assert [f.shape for f in pyramid(x)] == [(2, 48, 4, 4)] * 2
        assert pyramid.feature_info.channels() == [48, 48]

    def test_no_head(self, x):
        assert create(num_classes=0)(x).shape == (2, 48)

    def test_another_head(self, x):
        model = create()
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)

    def test_checkpointing_keeps_the_gradients(self, x):
        model = create().eval()
        gradients = []
        for enable in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            model(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        assert all(map(torch.equal, *gradients))

    def test_images_of_any_size(self):
        model = create(dynamic_img_size=True).eval()
        assert model(torch.randn(1, 3, 48, 64)).shape == (1, 10)

    def test_registers_average_pooling_and_layer_scale(self):
        model = create(global_pool="avg", class_token=False, reg_tokens=2, init_values=1e-5)
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_groups_can_be_chosen():
    act = create(groups=4).blocks[0].mlp.act2
    assert act.weight_denominator.shape == (4, 4)


def test_starts_can_be_chosen():
    act = create(act_init=("identity", "gelu")).blocks[0].mlp.act2
    x = torch.linspace(-3, 3, 192)
    assert_close(act(x), F.gelu(x), atol=2e-3, rtol=0)


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
    assert not any("act" in name or "pos_embed" in name for name in decayed)
    assert {"blocks.0.mlp.fc1.weight", "blocks.2.attn.qkv.weight"} <= decayed


class TestWeightsOfFlashKAT:
    @pytest.fixture
    def source(self):
        return create()

    @pytest.fixture
    def from_file(self, source, tmp_path):
        """timm's arguments for loading the source's weights under FlashKAT's names."""
        state = {
            name.replace("weight_numerator", "numerator_v").replace(
                "weight_denominator", "denominator_v"
            ): value
            for name, value in source.state_dict().items()
        }
        torch.save({"state_dict": state}, tmp_path / "flash.pth")
        overlay = dict(file=str(tmp_path / "flash.pth"), num_classes=10)
        return dict(pretrained=True, pretrained_cfg_overlay=overlay)

    def test_load(self, source, from_file):
        expected = source.state_dict()
        loaded = create(**from_file).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.items())

    def test_are_resized_to_another_image_size(self, from_file):
        larger = create(img_size=64, **from_file)
        assert larger.pos_embed.shape == (1, 65, 48)
        assert larger(torch.randn(1, 3, 64, 64)).isfinite().all()


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
model = timm.create_model(
    "kat_tiny_patch16_224",
    img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10,
)
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
result = {
    "losses": losses, "state": model.state_dict(), "average": average.module.state_dict()
}
torch.save(result, f"{sys.argv[1]}/rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of what two processes of timm's training left.

    They were started by the command of the book, `torchrun ... -m katlib.timm SCRIPT`; the script
    itself imports no katlib.
    """
    folder = tmp_path_factory.mktemp("training")
    script = folder / "train.py"
    script.write_text(TRAINING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = [sys.executable, *launcher, "-m", "katlib.timm", str(script), str(folder)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
class TestTimmsTrainingOnTwoProcesses:
    @pytest.fixture
    def ranks(self, two_processes):
        return [torch.load(two_processes / f"rank{rank}.pt") for rank in range(2)]

    def test_keeps_the_models_equal(self, ranks):
        first, second = (rank["state"] for rank in ranks)
        assert all(torch.equal(value, second[name]) for name, value in first.items())

    def test_averages_the_gradients(self, two_processes):
        first, second = (torch.load(two_processes / f"gradient{rank}.pt") for rank in range(2))
        assert all(map(torch.equal, first, second))

    def test_gives_each_process_its_own_images(self, ranks):
        assert ranks[0]["losses"][0] != ranks[1]["losses"][0]

    def test_learns(self, ranks):
        losses = ranks[0]["losses"]
        assert losses[-1] < 0.8 * losses[0]


def test_the_command_says_how_it_is_used():
    done = subprocess.run(
        [sys.executable, "-m", "katlib.timm"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "usage: python -m katlib.timm SCRIPT.py" in done.stderr


def test_the_command_runs_a_script_with_its_arguments(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, timm\nprint(sys.argv[1:], timm.list_models('kat_tiny*'), __name__)"
    )
    monkeypatch.setattr(sys, "argv", ["katlib.timm", str(script), "--lr", "1"])
    katlib.timm.main()
    assert capsys.readouterr().out == "['--lr', '1'] ['kat_tiny_patch16_224'] __main__\n"
