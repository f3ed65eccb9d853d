"""What describes a model is checked before anything is built."""

import time

import pytest

import katlib
from katlib.architecture import KAT_BASE, KAT_SMALL, KAT_TINY, MLPS, Architecture

SMALL = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2)


@pytest.mark.parametrize(
    "architecture, parameters",
    [(KAT_TINY, 5_718_328), (KAT_SMALL, 22_051_576), (KAT_BASE, 86_568_568)],
)
def test_the_released_models_have_the_papers_counts(architecture, parameters):
    assert architecture.parameters == parameters


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(mlp="mlp"),
        dict(num_classes=3, mlp_ratio=2.5, in_chans=1),
        dict(groups=None, numerator_groups=None),
        dict(degrees=(1, 1), act_init=[([0.0, 1.0], [1.0])] * 2),
        *[dict(mlp=mlp) for mlp in MLPS],
        dict(stem="conv"),
        dict(global_pool="seq"),
        dict(stem="conv", in_chans=1, global_pool="seq"),
    ],
)
def test_the_count_is_that_of_the_model(options):
    model = katlib.VisionTransformer(**SMALL, **options)
    assert Architecture(**SMALL, **options).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(depth=10**7), "depth=10000000; allowed are whole numbers, 1 to 1000"),
        (dict(embed_dim=128_000, num_heads=1000), r"2,359,568,001,912 parameters"),
        (dict(patch_size=0), "patch_size=0; allowed are whole numbers, 1 to 1000000"),
        (dict(embed_dim=10**400), "embed_dim=1000"),
        (dict(num_heads=0), "num_heads=0"),
        (dict(depth="12"), "depth='12'"),
        (dict(depth=True), "depth=True"),
        (dict(embed_dim=64.0), "embed_dim=64.0"),
        (dict(mlp_ratio=float("nan")), "mlp_ratio=nan; allowed are numbers, 0 to 1000"),
        (dict(mlp_ratio=float("inf")), "mlp_ratio=inf"),
        (dict(mlp_ratio=0.001), "leaves no hidden features"),
        (dict(drop_rate=1.5), "drop_rate=1.5; allowed are numbers, 0 to 1"),
        (dict(drop_path_rate=1), "drop_path_rate=1 would always drop the last block"),
        (dict(mlp="kan"), "mlp='kan' is not known; allowed are 'grkan', 'mlp', 'swiglu'"),
        (dict(stem="cnn"), "stem='cnn' is not known; allowed are 'patch', 'conv'"),
        (dict(global_pool="max"), "global_pool='max' is not known; allowed are 'token', 'seq'"),
        (dict(stem="conv", patch_size=14), "patch_size=14; with stem='conv' allowed are powers"),
        (dict(stem="conv", embed_dim=12, num_heads=2, groups=2), "does not divide embed_dim=12"),
        (dict(mlp=[]), r"mlp=\[\] is not known"),
        (dict(groups=7), "groups=7 does not divide embed_dim=768"),
        (dict(groups=0), "groups=0; allowed are whole numbers, 1 or more"),
        (dict(embed_dim=64, num_heads=2, mlp_ratio=1.5, numerator_groups=64), "hidden width=96"),
        (dict(degrees=(-1, 4)), "degrees=-1"),
        (dict(degrees=5), "degrees=5; allowed are pairs"),
        (dict(act_init="swish"), "act_init='swish'; allowed are pairs"),
    ],
)
def test_impossible_values_are_one_sentence_at_once(values, words):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=words) as error:
        Architecture(**values)
    assert time.perf_counter() - started < 0.5
    assert "\n" not in str(error.value)


def test_the_rational_functions_do_not_matter_for_an_mlp():
    assert Architecture(mlp="mlp", groups=7).mlp == "mlp"


def test_lists_as_in_json_are_taken():
    lists = Architecture.from_dict({"degrees": [5, 4], "act_init": ["identity", "swish"]})
    assert lists == Architecture()


def test_an_architecture_survives_its_dictionary():
    assert Architecture.from_dict(KAT_TINY.as_dict()) == KAT_TINY


def test_json_has_no_rational_functions_for_an_mlp():
    assert "groups" not in Architecture(mlp="mlp").as_json()
    assert Architecture().as_json()["act_init"] == ["identity", "swish"]


@pytest.mark.parametrize(
    "values, words", [({"width": 3}, r"\['width'\] are not known"), ([1], "is a dictionary")]
)
def test_a_dictionary_of_something_else_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Architecture.from_dict(values)


def test_the_layers_of_the_stem_double_the_channels():
    assert Architecture(stem="conv", patch_size=16).stem_channels == (96, 192, 384, 768)


@pytest.mark.parametrize("global_pool, tokens", [("token", 17), ("seq", 16)])
def test_sequence_pooling_needs_no_class_token(global_pool, tokens):
    assert Architecture(**SMALL, global_pool=global_pool).tokens == tokens


def test_a_gated_mlp_costs_as_much_as_the_others():
    sizes = dict(embed_dim=192, num_heads=3)
    gated = Architecture(**sizes, mlp="swiglu").parameters
    assert gated == pytest.approx(Architecture(**sizes, mlp="mlp").parameters, rel=0.002)
