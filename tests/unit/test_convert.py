"""From ViT to KAT: the same function, nothing shared, what cannot be converted refused."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny import draw_tiny
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import katlib
from katlib.convert import KEPT_SAMPLES, GRKANIntermediate, _Sample
from katlib.fit import fit_rational, max_error, refit
from katlib.train import train
from katlib.train.data import normalize
from katlib.train.recipe import Config

SMALL = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10, mlp="mlp"
)


def vit(**options):
    return katlib.VisionTransformer(**SMALL | options)


def scale_and_change(model, kat, images):
    """The root mean square of the model's logits, and the largest change of one."""
    with torch.no_grad():
        before, after = model.eval()(images), kat.eval()(images)
    return before.square().mean().sqrt().item(), (after - before).abs().max().item()


@pytest.fixture(
    scope="module", params=[3, pytest.param(12, marks=pytest.mark.slow)], ids=lambda n: f"depth {n}"
)
def converted(request):
    """A ViT, the KAT that was made of it, and the images on which its fits were made."""
    torch.manual_seed(0)
    model = vit(depth=request.param)
    images = torch.randn(16, 3, 32, 32)
    return model, katlib.from_vit(model, images), images


class TestOurViT:
    def test_becomes_a_kat_of_the_same_function(self, converted):
        scale, change = scale_and_change(*converted)
        assert change < 1e-2 * scale

    def test_keeps_its_function_on_images_that_the_fit_has_not_seen(self, converted):
        model, kat, _ = converted
        scale, change = scale_and_change(model, kat, torch.randn(16, 3, 32, 32))
        assert change < 2e-2 * scale

    def test_is_told_how_far_the_logits_changed(self, converted):
        _, kat, _ = converted
        scale, change = scale_and_change(*converted)
        assert kat.conversion["largest_logit_change"] == pytest.approx(change, rel=1e-3)
        assert kat.conversion["logit_scale"] == pytest.approx(scale, rel=1e-3)

    def test_is_told_how_good_each_fit_is(self, converted):
        model, kat, _ = converted
        layers = kat.conversion["layers"]
        assert list(layers) == [f"blocks.{i}.mlp" for i in range(len(model.blocks))]
        for layer in layers.values():
            assert layer["activation"] == "GELU"
            assert 0 < layer["typical_error"] < layer["max_error"] < 0.1

    def test_has_gr_kan_layers_in_all_blocks(self, converted):
        _, kat, _ = converted
        assert isinstance(kat, katlib.VisionTransformer)
        assert all(isinstance(block.mlp, katlib.GRKANMlp) for block in kat.blocks)

    def test_describes_itself_as_a_kat(self, converted):
        model, kat, _ = converted
        assert model.architecture.mlp == "mlp"
        assert kat.architecture.mlp == "grkan"
        assert kat.architecture.degrees == kat.conversion["degrees"]
        assert kat.architecture.parameters == sum(p.numel() for p in kat.parameters())


def test_pretrained_cfg_describes_the_kat():
    model = vit()
    model.pretrained_cfg = {"std": (1.0,), "architecture": model.architecture.as_json()}
    kat = katlib.from_vit(model, degrees=(5, 4), tolerance=0.5)
    assert kat.pretrained_cfg["architecture"]["mlp"] == "grkan"
    assert kat.pretrained_cfg["std"] == (1.0,)
    assert model.pretrained_cfg["architecture"]["mlp"] == "mlp"


@pytest.fixture(scope="module")
def mlp():
    """An MLP of a converted model."""
    torch.manual_seed(0)
    return katlib.from_vit(vit(), degrees=(5, 4), tolerance=0.1).blocks[1].mlp


class TestTheFunctions:
    def test_the_first_is_the_identity(self, mlp):
        x = torch.linspace(-3, 3, 48)
        assert torch.equal(mlp.act1(x), x)

    def test_the_second_is_the_activation(self, mlp):
        x = torch.linspace(-3, 3, 192)
        assert_close(mlp.act2(x), F.gelu(x), atol=2e-2, rtol=0)

    def test_they_have_groups(self, mlp):
        assert mlp.act2.weight_denominator.shape == (8, 4)


@pytest.fixture(scope="module")
def trained():
    """A ViT some of whose activations have large inputs after training, and its data."""
    torch.manual_seed(0)
    data = draw_tiny()
    kept = {}
    train(
        Config().replace(patch_size=8, embed_dim=48, depth=2, num_heads=2, batch_size=16, lr=1e-2),
        "mlp",
        epochs=10,
        data=data,
        progress=False,
        device="cpu",
        on_epoch=lambda model, epoch: kept.update(model=model),
    )
    images = normalize(data.test_images)
    return kept["model"], katlib.from_vit(kept["model"], images), images, data.test_labels


@pytest.mark.slow
class TestATrainedViT:
    def test_keeps_its_function(self, trained):
        model, kat, images, _ = trained
        scale, change = scale_and_change(model, kat, images)
        assert change < 1e-2 * scale

    def test_is_told_how_large_its_activations_inputs_are(self, trained):
        layers = trained[1].conversion["layers"].values()
        assert max(layer["interval"][1] for layer in layers) > 3

    def test_is_ready_to_be_trained_on(self, trained):
        _, kat, images, labels = trained
        F.cross_entropy(kat.train()(images), labels).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kat.parameters())


@pytest.fixture(scope="module")
def model():
    return vit(drop_rate=0.1).train()


@pytest.fixture(scope="module")
def kat(model):
    return katlib.from_vit(model, degrees=(5, 4), tolerance=0.1)


class TestTheOriginal:
    def test_and_the_result_are_in_the_same_mode(self, model, kat):
        assert kat.training
        assert model.training

    def test_hands_on_the_dropout_after_its_activation(self, kat):
        assert kat.blocks[0].mlp.drop2.p == 0.1
        assert kat.blocks[0].mlp.drop1.p == 0

    def test_shares_no_parameters_with_the_result(self, model, kat):
        ours = {p.data_ptr() for p in kat.parameters()}
        assert ours.isdisjoint({p.data_ptr() for p in model.parameters()})

    def test_is_left_alone(self, model):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        kat = katlib.from_vit(model, degrees=(5, 4), tolerance=0.1)
        with torch.no_grad():
            for p in kat.parameters():
                p.zero_()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_and_the_result_keep_no_hooks(self, model, kat):
        modules = [*model.modules(), *kat.modules()]
        assert not any(module._forward_pre_hooks for module in modules)


def test_a_timm_vits_image_size_is_found():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=1, in_chans=1)
    kat = katlib.from_vit(model, degrees=(5, 4))
    assert kat(torch.randn(1, 1, 32, 48)).shape == (1, 1000)
    assert kat.conversion["logit_scale"] > 0.1


@pytest.mark.slow
def test_the_result_can_be_saved_and_loaded(tmp_path):
    kat = katlib.from_vit(vit(), degrees=(7, 6)).eval()
    katlib.save_pretrained(kat, tmp_path / "kat.safetensors", mean=[0.5] * 3, std=[0.5] * 3)
    again = katlib.load_pretrained(tmp_path / "kat.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert again.pretrained_cfg["architecture"]["degrees"] == [7, 6]
    assert_close(again(x), kat(x), atol=5e-3, rtol=5e-2)


PLAIN_TIMM = dict(img_size=64, init_values=1e-5, reg_tokens=4, global_pool="avg", class_token=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options, tolerance",
    [
        ("vit_tiny_patch16_224", dict(img_size=64), 1e-2),
        ("vit_tiny_patch16_224", PLAIN_TIMM, 1e-2),
        ("deit3_small_patch16_224", dict(img_size=64, depth=4), 1e-2),
        ("beit_base_patch16_224", dict(img_size=64, depth=2, embed_dim=96, num_heads=3), 1e-2),
        # a corner is harder to follow
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, act_layer="relu"), 0.1),
        ("vit_tiny_patch16_224", dict(img_size=64, depth=3, act_layer="quick_gelu"), 1e-2),
    ],
)
def test_timms_vits_become_kats_of_the_same_function(name, options, tolerance):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **options)
    if options.get("init_values"):
        for block in model.blocks:
            nn.init.constant_(block.ls1.gamma, 0.3)
            nn.init.constant_(block.ls2.gamma, 0.3)
    images = torch.randn(16, 3, 64, 64)
    kat = katlib.from_vit(model, images, tolerance=tolerance)
    scale, change = scale_and_change(model, kat, images)
    assert change < tolerance * scale
    assert type(kat) is type(model)
    assert kat.pretrained_cfg == model.pretrained_cfg
    assert sum(isinstance(module, katlib.GRKANMlp) for module in kat.modules()) == len(model.blocks)


class Block(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class TanhBetween(Block):
    """Its forward does more than its layers say."""

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)).tanh())


def linears(**options):
    return dict(fc1=nn.Linear(8, 16), act=nn.GELU(), fc2=nn.Linear(16, 8)) | options


@pytest.mark.parametrize(
    "model, words",
    [
        (
            lambda: nn.Sequential(Block(**linears(fc1=nn.Linear(8, 32), act=nn.GLU()))),
            "0 .Block. is gated: fc1 makes 32 numbers and fc2 takes 16",
        ),
        (
            lambda: nn.Sequential(
                Block(
                    fc1_g=nn.Linear(8, 16),
                    fc1_x=nn.Linear(8, 16),
                    act=nn.SiLU(),
                    fc2=nn.Linear(16, 8),
                )
            ),
            "gated: the product of two branches",
        ),
        (
            lambda: Block(**linears(norm=nn.LayerNorm(16))),
            "the model .Block. has more than linear maps and an activation: norm",
        ),
        (
            lambda: Block(**linears(fc1=nn.Conv2d(8, 16, 1))),
            "Conv2d and Linear; fc1 and fc2 must be linear maps",
        ),
        (
            lambda: Block(**linears(act=nn.PReLU())),
            "activation PReLU; it must be a function without parameters",
        ),
        (lambda: Block(**linears(act=nn.Softmax(-1))), "activation Softmax, which mixes channels"),
        (lambda: Block(**linears(act=nn.GLU())), "activation GLU, which mixes channels"),
        (
            lambda: Block(fc1=nn.Linear(8, 16), fc2=nn.Linear(16, 8)),
            "has no activation that can be found; it must be a module or a function",
        ),
        (
            lambda: Block(in_proj=nn.Linear(8, 8), mlp_act=nn.GELU()),
            "attention and MLP in one product",
        ),
        (lambda: vit(mlp="grkan"), "is a GR-KAN already"),
        (lambda: nn.Linear(8, 8), "Linear has no MLP made of fc1, act and fc2"),
        (
            lambda: vit(embed_dim=36, mlp_ratio=1.0),
            "blocks.0.mlp .*: groups=8 does not divide channels=36",
        ),
        (lambda: Block(**linears(act=F.softmax)), "has the activation softmax, which mixes"),
        (
            lambda: Block(**linears(act=lambda x: F.dropout(x))),
            "has the activation <lambda>, which mixes channels or is random",
        ),
        (
            lambda: Block(
                gate_proj=nn.Linear(8, 16), up_proj=nn.Linear(8, 16), down_proj=nn.Linear(16, 8)
            ),
            "gated: the product of two branches",
        ),
        (lambda: vit().to("meta"), "VisionTransformer is on the meta device"),
        (lambda: Block(**linears()), "the model .Block. is itself an MLP"),
        (lambda: nn.Sequential(Block(**linears())), "does not say what size of images it takes"),
    ],
)
def test_what_cannot_be_converted_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        katlib.from_vit(model())


@pytest.mark.parametrize(
    "name, options",
    [
        ("eva02_tiny_patch14_224", dict(img_size=56)),
        ("vit_giant_patch14_reg4_dinov2", dict(img_size=56)),
        ("vit_tiny_patch16_224", dict(img_size=64, block_fn="ParallelScalingBlock")),
    ],
)
def test_timms_gated_and_parallel_vits_are_refused(name, options):
    timm = pytest.importorskip("timm")
    if "block_fn" in options:
        block = getattr(timm.models.vision_transformer, options["block_fn"])
        options = options | {"block_fn": block}
    model = timm.create_model(name, depth=1, embed_dim=48, num_heads=3, **options)
    with pytest.raises(ValueError, match=r"gated|in one product"):
        katlib.from_vit(model)


class Tower(nn.Module):
    """Embeds patches, runs blocks one after the other, each beside a residual, and a head."""

    img_size = 16

    def __init__(self, *blocks, classes=5):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        x = self.embed(images).flatten(2).mT  # (B, 4, 8)
        for block in self.blocks:
            x = x + block(F.layer_norm(x, (8,)))
        return self.head(x.mean(1))


def convert(model, **options):
    return katlib.from_vit(model.eval(), **dict(degrees=(5, 4), tolerance=0.1) | options)


@pytest.fixture
def images():
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class TestTiedMlps:
    """One MLP that stands in several places, as in timm's CoaT."""

    @pytest.fixture
    def tied(self):
        torch.manual_seed(0)
        one, other = Block(**linears()), Block(**linears())
        return Tower(one, other, one)

    def test_stay_tied(self, tied):
        blocks = convert(tied).blocks
        assert blocks[0] is blocks[2]
        assert blocks[0] is not blocks[1]
        assert all(isinstance(block, katlib.GRKANMlp) for block in blocks)

    def test_are_fitted_to_what_they_get_in_every_place(self, tied, images):
        with torch.no_grad():
            # inputs of more than 3, the least interval
            tied.blocks[0].fc1.weight.mul_(5)
        seen = []
        hook = tied.blocks[0].fc1.register_forward_hook(
            lambda module, arguments, output: seen.append(output.abs().max().item())
        )
        tied(images)
        hook.remove()
        lo, hi = convert(tied, images=images).conversion["layers"]["blocks.0"]["interval"]
        assert len(seen) == 2
        assert hi == -lo == math.ceil(1.1 * max(seen)) > 3

    def test_share_linear_maps_if_they_did(self, images):
        one, other = Block(**linears()), Block(**linears())
        other.fc1 = one.fc1
        other.fc2.weight = one.fc2.weight
        blocks = convert(Tower(one, other), images=images).blocks
        assert blocks[0].fc1 is blocks[1].fc1
        assert blocks[0].fc2.weight is blocks[1].fc2.weight
        assert blocks[0].act2 is not blocks[1].act2


def test_timms_coat_stays_tied():
    timm = pytest.importorskip("timm")
    model = timm.create_model("coat_tiny", img_size=32, embed_dims=(32,) * 4, num_classes=5)
    kat = katlib.from_vit(model, torch.randn(4, 3, 32, 32), degrees=(5, 4), tolerance=0.1)
    for block in kat.parallel_blocks:
        assert isinstance(block.mlp2, katlib.GRKANMlp)
        assert block.mlp2 is block.mlp3 is block.mlp4


class Positioned(Tower):
    """Adds what an MLP makes of the patches' coordinates."""

    def __init__(self, *blocks):
        super().__init__(*blocks)
        self.position_mlp = Block(
            fc1=nn.Linear(2, 12), act=nn.ReLU(), fc2=nn.Linear(12, 8, bias=False)
        )
        self.register_buffer("coordinates", torch.cartesian_prod(*[torch.arange(2.0)] * 2))

    def forward(self, images):
        bias = self.position_mlp(self.coordinates)
        return super().forward(images) + bias.sum()


class TestOtherMlps:
    def test_of_positions_are_left_alone(self):
        model = Positioned(Block(**linears()))
        kat = convert(model)
        assert isinstance(kat.position_mlp, Block)
        assert list(kat.conversion["layers"]) == ["blocks.0"]
        assert "positions" in kat.conversion["left_alone"]["position_mlp"]

    def test_of_squeeze_and_excitation_are_left_alone(self):
        excite = nn.Module()
        excite.fc1, excite.fc2 = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        excite.act, excite.gate = nn.ReLU(), nn.Sigmoid()
        model = Tower(Block(**linears()))
        model.excite = excite
        assert isinstance(convert(model).excite.fc1, nn.Conv2d)

    def test_that_are_not_used_are_left_alone_with_a_warning(self):
        model = Tower(Block(**linears()))
        model.spare = Block(**linears())
        with pytest.warns(UserWarning, match=r"spare .Block. stays as it is: the model does not"):
            kat = convert(model)
        assert isinstance(kat.spare, Block)

    def test_that_compute_more_than_their_layers_are_refused(self):
        with pytest.raises(ValueError, match=r"blocks.1 .TanhBetween. computes something else"):
            convert(Tower(Block(**linears()), TanhBetween(**linears())))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options",
    [
        ("swinv2_cr_tiny_224", dict(window_size=2, depths=(1, 1), embed_dim=48, num_heads=(3, 3))),
        ("vit_relpos_small_patch16_224", dict(depth=2, embed_dim=48, num_heads=3)),
        ("maxvit_rmlp_pico_rw_256", dict(depths=(1, 1, 1, 1))),
    ],
)
def test_timms_position_mlps_are_left_alone(name, options):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, img_size=64, **options).eval()
    images = torch.randn(4, 3, 64, 64)
    left = katlib.from_vit(model, images).conversion["left_alone"]
    assert left
    assert all("positions" in reason for reason in left.values())


class TestAHeadOfZeros:
    """Its logits do not change, whatever becomes of the MLPs."""

    @pytest.fixture
    def model(self):
        model = vit(depth=2)
        nn.init.zeros_(model.head.weight)
        return model

    def test_hides_no_bad_fit(self, model):
        with torch.no_grad():
            model.blocks[1].mlp.fc1.weight.mul_(30)
        words = "what blocks.1.mlp returns changes by .*% of its root mean square, more than"
        with pytest.warns(UserWarning, match=words):
            kat = katlib.from_vit(model, degrees=(3, 2))
        assert kat.conversion["largest_logit_change"] == 0
        assert kat.conversion["layers"]["blocks.1.mlp"]["output_change"] > 1e-2

    def test_is_no_reason_to_warn(self, model):
        kat = katlib.from_vit(model)
        assert all(0 < layer["output_change"] < 1e-2 for layer in layers_of(kat))


def layers_of(kat):
    return kat.conversion["layers"].values()


class TestWhatIsKeptOfTheInputs:
    @pytest.fixture
    def sample(self):
        return _Sample()

    def test_is_bounded_and_holds_every_part_by_its_size(self, sample):
        for value in (1.0, 2.0, 3.0):
            sample.add(torch.full((KEPT_SAMPLES,), value))
        assert len(sample.values) == KEPT_SAMPLES
        for value in (1.0, 2.0, 3.0):
            assert (sample.values == value).double().mean() == pytest.approx(1 / 3, abs=0.01)

    def test_is_all_if_there_is_little(self, sample):
        sample.add(torch.arange(10.0))
        sample.add(torch.arange(10.0, 30.0).view(4, 5))
        assert sample.values.sort().values.tolist() == list(range(30))

    def test_does_not_make_the_reach_smaller(self, sample):
        x = torch.zeros(40 * KEPT_SAMPLES)
        x[12345] = -7.0
        sample.add(x)
        sample.add(torch.ones(5))
        assert sample.reach == 7.0

    def test_does_not_grow_with_the_images(self):
        kept = []
        original = _Sample.add

        def add(self, x):
            original(self, x)
            kept.append(self.values.numel())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Sample, "add", add)
            convert(vit(depth=1), images=torch.randn(64, 3, 32, 32))
        assert max(kept) == KEPT_SAMPLES


class Intermediate(nn.Module):
    """Named as in Hugging Face's ViTLayer."""

    def __init__(self, act):
        super().__init__()
        self.dense = nn.Linear(8, 16)
        self.intermediate_act_fn = act

    def forward(self, hidden_states):
        return self.intermediate_act_fn(self.dense(hidden_states))


class Output(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(16, 8)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states, input_tensor):
        return self.dropout(self.dense(hidden_states)) + input_tensor


class HuggingFaceLayer(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.intermediate = Intermediate(act)
        self.output = Output()

    def forward(self, x):
        return self.output(self.intermediate(x), x)


class TestHuggingFacesDividedMlps:
    @pytest.fixture(params=[nn.GELU(), F.gelu], ids=["module", "function"])
    def model(self, request):
        torch.manual_seed(0)
        return Tower(HuggingFaceLayer(request.param)).eval()

    def test_become_gr_kans_of_the_same_function(self, model, images):
        kat = katlib.from_vit(model, images)
        scale, change = scale_and_change(model, kat, images)
        assert change < 1e-2 * scale
        assert isinstance(kat.blocks[0].intermediate, GRKANIntermediate)
        assert list(kat.conversion["layers"]) == ["blocks.0.intermediate"]

    def test_keep_the_names_of_their_linear_maps(self, model, images):
        before, after = model.state_dict(), katlib.from_vit(model, images).state_dict()
        assert before.keys() <= after.keys()
        assert {name.rpartition(".")[2] for name in after.keys() - before.keys()} == {
            "weight_numerator",
            "weight_denominator",
        }


class WithLogits(Tower):
    def forward(self, images):
        return SimpleNamespace(logits=super().forward(images), hidden_states=None)


def test_a_model_that_returns_its_logits_in_an_object_is_converted(images):
    kat = convert(WithLogits(Block(**linears())), images=images)
    assert kat.conversion["logit_scale"] > 0


def test_hugging_faces_vits_become_kats_of_the_same_function():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        image_size=32, patch_size=8,
    )  # fmt: skip
    kat = katlib.from_vit(transformers.ViTForImageClassification(config))
    assert len(kat.conversion["layers"]) == 2
    assert kat.conversion["relative_change"] < 1e-2


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision")


class TestTorchvisions:
    def test_vits_become_kats_of_the_same_function(self, torchvision):
        torch.manual_seed(0)
        model = torchvision.models.VisionTransformer(32, 8, 2, 3, 48, 96, dropout=0.1)
        nn.init.normal_(model.heads.head.weight)
        kat = katlib.from_vit(model)
        images = torch.randn(16, 3, 32, 32)
        scale, change = scale_and_change(model, kat, images)
        assert change < 2e-2 * scale
        layer = kat.encoder.layers.encoder_layer_0.mlp
        assert [type(part) for part in layer] == [katlib.GRKANMlp, nn.Dropout]
        assert layer[0].drop2.p == 0.1

    def test_vits_without_dropout_get_gr_kans_alone(self, torchvision):
        model = torchvision.models.VisionTransformer(32, 8, 1, 3, 48, 96)
        kat = katlib.from_vit(model)
        assert type(kat.encoder.layers.encoder_layer_0.mlp) is katlib.GRKANMlp

    def test_norms_before_the_linear_maps_are_kept(self, torchvision):
        model = torchvision.models.maxvit.MaxVit(
            input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[16],
            block_layers=[1], head_dim=8, stochastic_depth_prob=0.0,
        )  # fmt: skip
        kat = katlib.from_vit(model, torch.randn(4, 3, 32, 32))
        mlp = kat.blocks[0].layers[0].layers.grid_attention.mlp_layer
        assert [type(part) for part in mlp] == [nn.LayerNorm, katlib.GRKANMlp]

    @pytest.mark.slow
    def test_swins_position_mlps_are_left_alone(self, torchvision):
        model = torchvision.models.SwinTransformer(
            [4, 4], 48, [1, 1], [2, 4], [2, 2],
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
        )  # fmt: skip
        kat = katlib.from_vit(model, torch.randn(4, 3, 32, 32))
        block = kat.features[1][0]
        assert type(block.mlp) is katlib.GRKANMlp
        assert [type(part) for part in block.attn.cpb_mlp] == [nn.Linear, nn.ReLU, nn.Linear]


ACTIVATIONS = {
    "function": F.gelu,
    "tanh variant": partial(F.gelu, approximate="tanh"),
    "tanh variant as a module": nn.GELU(approximate="tanh"),
    "in-place module": nn.SiLU(inplace=True),
    "QuickGELU": lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("attribute", ["act", "activation_fn", "nonlinearity"])
def test_activations_are_found_whatever_they_are(act, attribute, images):
    if attribute == "nonlinearity" and not isinstance(act, nn.Module):
        pytest.skip("a function has to have a known name")
    block = TheirNames(attribute, act)
    model = Tower(block)
    kat = katlib.from_vit(model, images)
    scale, change = scale_and_change(model, kat, images)
    assert change < 1e-2 * scale


class TheirNames(nn.Module):
    """An MLP whose activation has some name."""

    def __init__(self, attribute, act):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.attribute = attribute
        setattr(self, attribute, act)

    def forward(self, x):
        return self.fc2(getattr(self, self.attribute)(self.fc1(x)))


def test_activations_that_look_alike_have_their_own_fits(images):
    """Two lambdas of one source, and two modules with the same repr."""

    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return torch.tanh(self.factor * x)

    acts = [Scaled(0.5), Scaled(2.0), *(lambda x, k=k: torch.tanh(k * x) for k in (0.5, 2.0))]
    torch.manual_seed(0)
    model = Tower(*(Block(**linears(act=act)) for act in acts))
    kat = convert(model, images=images)
    x = torch.linspace(-2, 2, 16)
    for act, block in zip(acts, kat.blocks, strict=True):
        assert_close(block.act2(x), act(x), atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_is_converted_as_well_as_one_of_float32(dtype):
    torch.manual_seed(0)
    kat = katlib.from_vit(vit(depth=2).to(dtype))
    assert kat.conversion["degrees"] == (5, 4)
    assert kat.conversion["relative_change"] < 1e-2
    assert kat.blocks[0].mlp.fc1.weight.dtype == kat.head.weight.dtype == dtype
    assert kat(torch.randn(2, 3, 32, 32, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_other_defaults_change_nothing(default, images):
    torch.manual_seed(0)
    model = Tower(Block(**linears()), Block(**linears(act=F.silu))).eval()
    expected = convert(model).state_dict()
    dtype = torch.get_default_dtype()
    try:
        if default == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(default)
        got = convert(model).state_dict()
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
    assert all(torch.equal(value, expected[name]) for name, value in got.items())


def test_activations_inputs_that_are_not_finite_are_named():
    model = Tower(Block(**linears()), Block(**linears())).eval()
    with torch.no_grad():
        model.blocks[1].fc1.bias[0] = math.inf
    with pytest.raises(ValueError, match=r"blocks.1 .Block. gives its activation numbers that"):
        convert(model)


def test_an_exception_in_the_model_is_passed_on():
    with pytest.raises(ValueError, match="images have shape"):
        katlib.from_vit(vit(depth=1), torch.randn(16, 3, 16, 16))


def test_a_change_that_is_too_large_is_said():
    model = vit(depth=1)
    with torch.no_grad():
        # inputs of up to 100, where F cannot follow
        model.blocks[0].mlp.fc1.weight.mul_(30)
    words = (
        r"the logits change by up to .*% of their root mean square, more than the tolerance of 1.0%"
    )
    with pytest.warns(UserWarning, match=words):
        report = katlib.from_vit(model, degrees=(3, 2)).conversion
    assert report["relative_change"] > 1e-2
    assert report["layers"]["blocks.0.mlp"]["interval"][1] > 50


@pytest.fixture(scope="module")
def wide():
    return fit_rational("gelu", interval=(-8, 8), rounds=10)


@pytest.fixture
def samples():
    return torch.randn(4000, dtype=torch.float64)


class TestRefit:
    def test_moves_the_error_to_where_no_inputs_are(self, wide, samples):
        near = refit(wide, "gelu", samples)
        before, after = (
            math.sqrt((fit(samples) - F.gelu(samples)).square().mean()) for fit in (wide, near)
        )
        assert after < 0.75 * before
        assert near.max_error < 0.1

    def test_measures_its_largest_error_on_the_whole_interval(self, wide, samples):
        near = refit(wide, "gelu", samples)
        assert near.max_error == pytest.approx(max_error(near, "gelu", (-8, 8)))
        assert (near.denominator >= 0).all()
        assert near.interval == (-8.0, 8.0)
