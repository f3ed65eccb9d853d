"""`katlib::rational` as an operator.

What torch.library, autograd, torch.compile, torch.export, torch.jit, autocast and torch.func ask.
"""

import io
import types

import pytest
import torch
from oracle import HUGE_COEFFICIENTS, HUGE_DEGREES, HUGE_INPUTS, errors, huge
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import katlib
from katlib import ops

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# which of x, a and b learn
FROZEN = [
    (True, False, False),
    (False, True, True),
    (False, True, False),
    (False, False, True),
    (True, True, False),
    (True, False, True),
]
TINY = dict(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10)
FORWARD = torch.ops.katlib.rational.default
BACKWARD = torch.ops.katlib.rational_backward.default
NONE_MAPPED_BUT = [
    (0, 0, 0),
    (0, None, None),
    (None, 0, None),
    (None, None, 0),
    (0, 0, None),
    (0, None, 0),
    (None, 0, 0),
]


def tensors(
    dtype=torch.float32, shape=(3, 12), groups=(2, 4), m=5, n=4, channels_last=False, grad=True
):
    """x, numerator and denominator."""
    real = torch.promote_types(dtype, torch.float32)
    x = torch.randn(shape).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    a, b = torch.randn(groups[0], m + 1, dtype=real), torch.randn(groups[1], n, dtype=real)
    return tuple(t.requires_grad_(grad) for t in (x, a, b))


def loss_of(function):
    return lambda x, a, b: function(x, a, b).square().sum()


LOSS, REFERENCE_LOSS = loss_of(katlib.rational), loss_of(katlib.rational_reference)


# ---- opcheck


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_of_the_forward(dtype):
    torch.library.opcheck(FORWARD, (*tensors(dtype), -1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, True)])
def test_opcheck_of_the_backward(dtype, asked):
    torch.library.opcheck(BACKWARD, (torch.randn(3, 12).to(dtype), *tensors(dtype), -1, *asked))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, dim",
    [
        (dict(shape=(0, 12), grad=False), -1),
        (dict(shape=(2, 8, 5, 3), groups=(1, 4)), 1),
        (dict(shape=(2, 8, 5, 3), groups=(1, 4), channels_last=True), 1),
        (dict(groups=(1, 12)), 1),
    ],
)
def test_opcheck_of_other_shapes_and_layouts(options, dim):
    torch.library.opcheck(FORWARD, (*tensors(**options), dim))


def test_groups_that_do_not_divide_the_channels_are_refused():
    x, a, b = tensors(groups=(2, 5))
    with pytest.raises(ValueError, match="2 and 5 groups for 12 channels"):
        FORWARD(x, a, b, -1)


@pytest.mark.parametrize("wrong", [0, 1, 2], ids=["x", "numerator", "denominator"])
@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64], ids=str
)
def test_other_types_are_refused_by_name(wrong, dtype):
    inputs = list(tensors(grad=False))
    inputs[wrong] = inputs[wrong].to(dtype)
    with pytest.raises(TypeError, match="allowed are float16, bfloat16, float32 and float64"):
        katlib.rational(*inputs)


# ---- the reference's arithmetic


@pytest.mark.parametrize("coefficients", HUGE_COEFFICIENTS)
@pytest.mark.parametrize("m, n", HUGE_DEGREES)
@pytest.mark.parametrize("dtype, largest", HUGE_INPUTS)
def test_huge_inputs_are_right_in_the_reference(dtype, largest, m, n, coefficients):
    g, x, a, b = huge(dtype, largest, m, n, coefficients)
    results = ops.reference_forward(x, a, b, 1), *ops.reference_backward(g, x, a, b, 1)
    assert max(errors(results, g, x, a, b).values()) < 8


@pytest.mark.parametrize(
    "device, m, n, dtype",
    [
        ("cpu", 5, 4, torch.float32),
        ("cpu", 6, 4, torch.float64),
        ("cpu", 5, 6, torch.float64),
        ("mps", 8, 8, torch.float32),
    ],
)
def test_the_reference_needs_no_float64_where_there_is_none(device, m, n, dtype):
    """Apple's GPUs have none."""
    x = types.SimpleNamespace(device=torch.device(device), dtype=torch.float16)
    assert ops.reference_dtype(x, torch.empty(1, m + 1), torch.empty(1, n)) == dtype


# ---- autograd


def test_the_reference_backward_is_that_of_the_reference_forward():
    inputs = tensors(torch.float64)
    g = torch.randn(3, 12, dtype=torch.float64)
    expected = torch.autograd.grad(ops.reference_forward(*inputs, -1), inputs, g)
    assert_close(ops.reference_backward(g, *inputs, -1), expected)


def test_the_graph_has_one_node_for_the_whole_function():
    x, a, b = tensors()
    y = katlib.rational(x, a, b.detach())
    parents = [type(node).__name__ for node, _ in y.grad_fn.next_functions if node]
    assert parents == ["AccumulateGrad"] * 2


class Watch(TorchDispatchMode):
    """Keeps each operator with its arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append((function, args))
        return function(*args, **kwargs or {})

    def arguments_of(self, function):
        return next(args for seen, args in self.seen if seen is function)


@pytest.mark.parametrize(
    "learns, asked",
    [
        ((True, True, True), (True, True)),
        ((True, False, False), (True, False)),  # frozen coefficients
        ((False, True, True), (False, True)),  # a frozen input
        ((False, False, True), (False, True)),
        ((True, True, False), (True, True)),
    ],
)
def test_backward_asks_only_for_what_is_needed(learns, asked):
    inputs = [t.detach().requires_grad_(learn) for t, learn in zip(tensors(), learns)]
    wanted = [t for t in inputs if t.requires_grad]
    with Watch() as watch:
        got = torch.autograd.grad(katlib.rational(*inputs).sum(), wanted)
    assert watch.arguments_of(BACKWARD)[-2:] == asked
    expected = torch.autograd.grad(katlib.rational_reference(*inputs).sum(), wanted)
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", [(True, False), (False, True), (False, False)])
def test_a_gradient_that_is_not_asked_for_is_an_empty_tensor(asked):
    x, a, b = tensors(grad=False)
    dx, da, db = BACKWARD(torch.randn_like(x), x, a, b, -1, *asked)
    assert (dx.numel() > 0, da.numel() > 0, db.numel() > 0) == (asked[0], asked[1], asked[1])


def test_coefficients_that_change_in_place_before_backward_are_an_error():
    x, a, b = tensors()
    y = katlib.rational(x, a, b)
    with torch.no_grad():
        a += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_saved_tensor_may_come_back_with_other_strides():
    """As from a hook that stores it elsewhere; the kernel must not read it in the wrong order."""
    inputs, g, unpacked = tensors(), torch.randn(3, 12), []

    def unpack(t):
        unpacked.append(t.T)
        return t.T

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.T.contiguous(), unpack):
        y = katlib.rational(*inputs)
    got = torch.autograd.grad(y, inputs, g)
    expected = torch.autograd.grad(katlib.rational_reference(*inputs), inputs, g)
    assert len(unpacked) == 3
    assert not any(t.is_contiguous() for t in unpacked)
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_batches_of_gradients():
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    inputs = tensors(torch.float64, groups=(2, 6))
    y, expected = katlib.rational(*inputs), katlib.rational_reference(*inputs)
    g = torch.randn(5, *y.shape, dtype=torch.float64)
    got = torch.autograd.grad(y, inputs, g, is_grads_batched=True)
    assert_close(got, torch.autograd.grad(expected, inputs, g, is_grads_batched=True))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_batches_of_gradients_by_finite_differences(check):
    assert check(katlib.rational, tensors(torch.float64, groups=(2, 6)), check_batched_grad=True)


# ---- layouts


def test_channels_last_is_read_like_channels_that_come_last():
    x = torch.randn(2, 8, 5, 3)
    _, a, b = tensors(grad=False)
    channels_last = x.to(memory_format=torch.channels_last)
    shape = ops.memory_shape(x.permute(0, 2, 3, 1).contiguous(), -1, a, b)
    assert ops.memory_shape(channels_last, 1, a, b) == shape == (2 * 5 * 3, 4, 2)


def test_looking_at_a_layout_takes_no_memory(monkeypatch):
    devices, empty_like = [], torch.empty_like

    def watched(t, **options):
        devices.append(options.get("device"))
        return empty_like(t, **options)

    x = torch.randn(2, 8, 5, 3).to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch, "empty_like", watched)
    assert ops.with_layout_of(x, x) is x
    assert devices == ["meta"]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_channels_last_stays_channels_last(compiled):
    x, a, b = tensors(shape=(2, 8, 5, 3), groups=(2, 4), channels_last=True)
    function = torch.compile(katlib.rational, fullgraph=True) if compiled else katlib.rational
    y = function(x, a, b, dim=1)
    (dx,) = torch.autograd.grad(y, x, torch.randn(2, 8, 5, 3))
    for t in (y, dx):
        assert t.is_contiguous(memory_format=torch.channels_last)
        assert not t.is_contiguous()


def test_channels_last_has_the_right_values_and_gradients():
    inputs = tensors(shape=(2, 8, 5, 3), groups=(2, 4), channels_last=True)
    g = torch.randn(2, 8, 5, 3)
    y, expected = (f(*inputs, dim=1) for f in (katlib.rational, katlib.rational_reference))
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    got, wanted = (torch.autograd.grad(t, inputs, g) for t in (y, expected))
    assert_close(got, wanted, rtol=1e-4, atol=1e-4)


BASE = torch.randn(4, 6, 8, 10, generator=torch.Generator().manual_seed(0))
VIEWS = {
    "transposed": BASE.transpose(1, 2),
    "sliced": BASE[:, ::2],
    "sliced at the end": BASE[..., :4],
    "permuted": BASE.permute(3, 0, 2, 1),
    "expanded": BASE[:1, :1].expand(3, 5, 8, 10),
    "with a size of 1": BASE[:, :1].transpose(0, 1),
}


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("view", VIEWS)
def test_every_layout_has_the_right_values_and_gradients(view, dim):
    x = VIEWS[view].detach().requires_grad_()
    a, b = torch.randn(1, 6), torch.randn(x.shape[dim], 4)
    y, expected = (f(x, a, b, dim=dim) for f in (katlib.rational, katlib.rational_reference))
    assert y.stride() == torch.empty_like(x).stride()
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    g = torch.randn(1).expand(x.shape)
    got, wanted = (torch.autograd.grad(t, x, g) for t in (y, expected))
    assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# ---- torch.compile


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_a_transformer_compiles_whole(mlp):
    """fullgraph: one break would be an error. Values and gradients as without it."""
    model = katlib.VisionTransformer(**TINY, mlp=mlp)
    parameters = list(model.parameters())
    x = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), model(x)
    assert_close(y, expected)
    got, wanted = (torch.autograd.grad(t.square().sum(), parameters) for t in (y, expected))
    assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learns", FROZEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_compiled_functions_may_have_frozen_inputs_or_coefficients(dtype, learns):
    torch._dynamo.reset()
    inputs = [t.detach().requires_grad_(learn) for t, learn in zip(tensors(dtype), learns)]
    wanted = [t for t in inputs if t.requires_grad]
    compiled = torch.compile(katlib.rational, fullgraph=True, backend="aot_eager")
    got, expected = (
        torch.autograd.grad(f(*inputs).sum(), wanted) for f in (compiled, katlib.rational)
    )
    assert_close(got, expected)


@pytest.mark.slow
def test_inductor_compiles_a_layer():
    layer = katlib.GRKAN(16, 8, groups=4)
    x = torch.randn(3, 16, requires_grad=True)
    inputs = [x, *layer.parameters()]
    y, expected = torch.compile(layer, fullgraph=True)(x), layer(x)
    assert_close(y, expected)
    got, wanted = (torch.autograd.grad(t.square().sum(), inputs) for t in (y, expected))
    assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_one_compiled_function_takes_several_group_counts_and_sizes():
    """The second call makes the sizes dynamic; no number of groups may be baked in."""
    torch._dynamo.reset()
    function = torch.compile(katlib.rational, fullgraph=True, backend="aot_eager")
    for shape, groups in [
        ((3, 16), (1, 4)),
        ((3, 16), (1, 8)),
        ((5, 24), (4, 8)),
        ((7, 6), (6, 2)),
    ]:
        x, a, b = tensors(shape=shape, groups=groups)
        y, expected = function(x, a, b), katlib.rational_reference(x, a, b)
        assert_close(y, expected, rtol=1e-4, atol=1e-5)
        got, wanted = (torch.autograd.grad(t.sum(), (x, b)) for t in (y, expected))
        assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("argnums", [(0, 1, 2), (0,), (1, 2), (2,)])
def test_a_transform_of_torch_func_compiles(argnums, mapped):
    torch._dynamo.reset()
    gradient, expected = (torch.func.grad(f, argnums) for f in (LOSS, REFERENCE_LOSS))
    inputs = tensors(torch.float64, grad=False)
    if mapped:
        gradient, expected = torch.func.vmap(gradient), torch.func.vmap(expected)
        inputs = [torch.stack([t, 2 * t]) for t in inputs]
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), expected(*inputs))


# ---- torch.export, torch.jit, ONNX


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_layer_holds_the_operator(training, strict):
    layer = katlib.GRKAN(16, 8, groups=4).train(training)
    x = torch.randn(3, 16)
    program = torch.export.export(layer, (x,), strict=strict)
    assert "katlib.rational" in program.graph_module.code
    assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("strict", [False, True])
def test_a_transformer_in_training_mode_can_be_exported(strict):
    model = katlib.VisionTransformer(**TINY, drop_path_rate=0.0).train()
    x = torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (x,), strict=strict)
    assert_close(program.module()(x), model(x))


def test_an_exported_operator_can_be_decomposed():
    layer = katlib.GRKAN(16, 8, groups=4)
    x = torch.randn(3, 16)
    program = torch.export.export(layer, (x,))
    plain = program.run_decompositions({FORWARD: ops.reference_forward})
    assert "katlib" not in plain.graph_module.code
    assert_close(plain.module()(x), layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_function_holds_the_operator_and_can_be_stored():
    _, a, b = tensors(grad=False)
    traced = torch.jit.trace(lambda x: katlib.rational(x, a, b), torch.randn(3, 12))
    assert "katlib.rational" in traced.code
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = torch.randn(3, 12)
    assert_close(torch.jit.load(file)(x), katlib.rational(x, a, b))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_both_onnx_exporters_write_plain_arithmetic(dynamo):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer, x, file = katlib.GRKAN(16, 8, groups=4), torch.randn(3, 16), io.BytesIO()
    torch.onnx.export(layer, (x,), file, dynamo=dynamo)
    model = onnx.load_from_string(file.getvalue())
    assert {entry.domain for entry in model.opset_import} <= {
        "",
        "ai.onnx",
        "pkg.onnxscript.torch_lib.common",
    }
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(y), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("degrees", [(5, 4), (3, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_what_is_exported_is_the_same_function(monkeypatch, degrees, dim):
    m, n = degrees
    x = torch.randn(6, 12, 12, dtype=torch.float64)
    a = torch.randn(3 if dim else 1, m + 1, dtype=torch.float64)
    b = torch.randn(2, n, dtype=torch.float64)
    expected = katlib.rational(x, a, b, dim=dim)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert_close(katlib.rational(x, a, b, dim=dim), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_function_has_one_coefficient_for_each_channel_and_no_groups():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    layer, file = katlib.GroupRational(16, groups=4), io.BytesIO()
    torch.onnx.export(layer, (torch.randn(3, 16),), file, dynamo=True)
    operators = {node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node}
    assert "Abs" in operators
    assert operators.isdisjoint({"Where", "Less"})


# ---- autocast, other devices, modes


def test_autocast_keeps_bfloat16():
    layer, seen = katlib.GRKANMlp(32, 64), []
    layer.act2.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, 32))
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert y.dtype == torch.bfloat16


def test_coefficients_get_float32_gradients_under_autocast():
    layer = katlib.GRKANMlp(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, 32))
    y.float().sum().backward()
    gradient = layer.act2.weight_numerator.grad
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


def test_a_model_in_half_has_gradients_in_half():
    layer = katlib.GroupRational(12, groups=4).half()
    layer(torch.randn(3, 12).half()).sum().backward()
    assert [p.grad.dtype for p in layer.parameters()] == [torch.float16] * 2


def test_a_device_without_a_kernel_takes_the_reference():
    """The meta device computes shapes only; it has no kernel of ours."""
    y = katlib.rational(*(t.detach().to("meta") for t in tensors(torch.bfloat16)))
    assert (y.device.type, y.dtype, y.shape) == ("meta", torch.bfloat16, (3, 12))


def test_fake_tensors_have_the_shape_of_x():
    inputs = tensors()
    with torch._subclasses.FakeTensorMode() as mode:
        assert katlib.rational(*map(mode.from_tensor, inputs)).shape == (3, 12)


def test_a_dispatch_mode_sees_the_operator_forward_and_backward():
    inputs = tensors()
    with Watch() as watch:
        got = torch.autograd.grad(katlib.rational(*inputs).sum(), inputs)
    functions = [function for function, _ in watch.seen]
    assert FORWARD in functions
    assert BACKWARD in functions
    assert_close(got, torch.autograd.grad(katlib.rational(*inputs).sum(), inputs))


# ---- torch.func


@pytest.mark.parametrize("in_dims", NONE_MAPPED_BUT)
def test_vmap_over_any_of_the_inputs(in_dims):
    stacked = [torch.stack([t, 2 * t, -t]) for t in tensors(torch.float64, grad=False)]
    inputs = [t if d == 0 else t[0] for t, d in zip(stacked, in_dims)]
    got, wanted = (
        torch.func.vmap(f, in_dims)(*inputs) for f in (katlib.rational, katlib.rational_reference)
    )
    assert_close(got, wanted)


@pytest.mark.parametrize("argnums", [(0, 1, 2), (0,), (2,)])
@pytest.mark.parametrize("in_dims", NONE_MAPPED_BUT)
def test_gradients_of_each_sample(in_dims, argnums):
    stacked = [torch.stack([t, 2 * t, -t]) for t in tensors(torch.float64, grad=False)]
    inputs = [t if d == 0 else t[0] for t, d in zip(stacked, in_dims)]
    got, wanted = (
        torch.func.vmap(torch.func.grad(f, argnums), in_dims)(*inputs)
        for f in (LOSS, REFERENCE_LOSS)
    )
    assert_close(got, wanted)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_vmap_over_any_dimension_of_an_image_batch(in_dim):
    x, a, b = tensors(torch.float64, shape=(2, 5, 8, 3), groups=(2, 4), grad=False)
    x = x.movedim(1, in_dim)
    got, wanted = (
        torch.func.vmap(lambda x, f=f: f(x, a, b, dim=-2), in_dim)(x)
        for f in (katlib.rational, katlib.rational_reference)
    )
    assert_close(got, wanted)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_derivatives_of_higher_order(order, argument):
    inputs = tensors(torch.float64, shape=(2, 4), groups=(1, 2), m=2, n=2, grad=False)
    got, wanted = LOSS, REFERENCE_LOSS
    for _ in range(order):
        got, wanted = (torch.func.jacrev(f, argument) for f in (got, wanted))
    assert_close(got(*inputs), wanted(*inputs))


def test_vmap_of_vmap():
    stacked = [torch.stack([t, 2 * t]) for t in tensors(torch.float64, grad=False)]
    got, wanted = (
        torch.func.vmap(torch.func.vmap(f, (0, None, None)))(*stacked)
        for f in (katlib.rational, katlib.rational_reference)
    )
    assert_close(got, wanted)


def test_forward_mode_is_an_error_that_says_so():
    inputs = tensors(grad=False)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(katlib.rational, inputs, inputs)


def test_a_tensor_left_over_from_a_transform_is_served():
    """torch.func gives its own wrappers to the function; PyTorch unwraps one that outlives it."""
    x, a, b = tensors(grad=False)
    kept = []

    def keep(x):
        kept.append(x)
        return x.sum()

    torch.func.grad(keep)(x)
    assert_close(katlib.rational(kept[0], a, b), katlib.rational(x, a, b))


def test_torch_has_the_private_name_that_tells_of_transforms():
    """Without it torch.func could not differentiate the operator; all else would go on."""
    assert hasattr(torch._C, "_are_functorch_transforms_active")
