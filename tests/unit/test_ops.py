"""`katlib::rational` as an operator: what torch.library, torch.compile, torch.export, autocast and torch.func ask of it."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import katlib
from katlib import cpu
from katlib import ops as operator
from katlib.ops import reference_backward, reference_forward

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TINY = dict(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=10)


def grouped(dtype=torch.float32, rows=3, G=4, span=5, m=5, n=4, requires_grad=True):
    c = torch.promote_types(dtype, torch.float32)
    tensors = (
        torch.randn(rows, G, span).to(dtype),
        torch.randn(G, m + 1, dtype=c),
        torch.randn(G, n, dtype=c),
    )
    return tuple(t.requires_grad_(requires_grad) for t in tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.katlib.rational.default, grouped(dtype))
    torch.library.opcheck(
        torch.ops.katlib.rational.default, grouped(dtype, rows=0, requires_grad=False)
    )
    torch.library.opcheck(
        torch.ops.katlib.rational_backward.default,
        (torch.randn(3, 4, 5).to(dtype), *grouped(dtype)),
    )
    x, a, b = grouped(dtype)
    with pytest.raises(ValueError, match="3 and 4 rows of coefficients for 4 groups"):
        torch.ops.katlib.rational(x, a[:3], b)
    torch.library.opcheck(
        torch.ops.katlib.rational.default,
        (x, a[:1].detach().requires_grad_(), b[:2].detach().requires_grad_()),
    )  # groups that share rows
    torch.library.opcheck(
        torch.ops.katlib.rational_backward.default,
        (
            torch.randn(3, 4, 5).to(dtype),
            x,
            a[:2].detach().requires_grad_(),
            b[:1].detach().requires_grad_(),
        ),
    )


@pytest.mark.parametrize("mlp", ["grkan", "mlp"])
def test_a_transformer_compiles_whole(mlp):
    """fullgraph: one break would be an error. Values and gradients as without it."""
    model = katlib.VisionTransformer(**TINY, mlp=mlp)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    got = torch.autograd.grad(compiled.square().sum(), list(model.parameters()))
    assert_close(compiled, expected)
    for mine, theirs in zip(got, wanted):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_inductor_compiles_a_layer():
    layer = katlib.GRKAN(16, 8, groups=4)
    x = torch.randn(3, 16, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    assert_close(compiled(x), layer(x))
    assert_close(
        *(
            torch.autograd.grad(f(x).square().sum(), [x, *layer.parameters()])
            for f in (compiled, layer)
        ),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_layer_is_exported_with_the_operator_and_without():
    layer = katlib.GRKAN(16, 8, groups=4)
    x = torch.randn(3, 16)
    program = torch.export.export(layer, (x,))
    assert "katlib.rational" in program.graph_module.code
    assert_close(program.module()(x), layer(x))
    plain = program.run_decompositions({torch.ops.katlib.rational.default: reference_forward})
    assert "katlib" not in plain.graph_module.code
    assert_close(plain.module()(x), layer(x))


def test_autocast_keeps_bfloat16():
    layer = katlib.GRKANMlp(32, 64)
    x = torch.randn(4, 32)
    seen = []
    layer.act2.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert seen == [(torch.bfloat16, torch.bfloat16)] and y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert (
        layer.act2.weight_numerator.grad.dtype == torch.float32
        and layer.act2.weight_numerator.grad.abs().sum() > 0
    )


def test_torch_func_maps_and_differentiates_everything():
    """Every input mapped or not, and derivatives of first and second order under the map."""
    x = torch.randn(6, 3, 8, dtype=torch.float64)
    a, b = torch.randn(6, 2, 6, dtype=torch.float64), torch.randn(6, 4, 4, dtype=torch.float64)

    def loss(x, a, b):
        return katlib.rational(x, a, b).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(x, a, b)
    for i in range(6):
        leaves = [t[i].clone().requires_grad_() for t in (x, a, b)]
        for mine, theirs in zip(
            mapped, torch.autograd.grad(katlib.rational_reference(*leaves).square().sum(), leaves)
        ):
            assert_close(mine[i], theirs)
    only_b = torch.func.vmap(lambda b: katlib.rational(x[0], a[0], b))(b)
    assert_close(only_b, torch.stack([katlib.rational(x[0], a[0], one) for one in b]))
    hessian = torch.func.jacrev(torch.func.jacrev(lambda b: loss(x[0], a[0], b)))(
        b[0]
    )  # reverse mode twice
    expected = torch.autograd.functional.hessian(
        lambda b: katlib.rational_reference(x[0], a[0], b).square().sum(), b[0]
    )
    assert_close(hessian, expected)


def test_a_device_without_a_kernel_takes_the_reference():
    """The meta device computes shapes only: it has no kernel of ours, so it shows where such a call goes."""
    x, a, b = (t.detach().to("meta") for t in grouped(torch.bfloat16))
    y = katlib.rational(x.flatten(1), a, b)
    assert y.device.type == "meta" and y.dtype == torch.bfloat16 and y.shape == (3, 20)


def test_the_reference_backward_is_that_of_the_reference_forward():
    x, a, b = grouped(torch.float64)
    g = torch.randn(3, 4, 5, dtype=torch.float64)
    for mine, theirs in zip(
        reference_backward(g, x, a, b),
        torch.autograd.grad(reference_forward(x, a, b), (x, a, b), g),
    ):
        assert_close(mine, theirs)


def test_batched_gradients_and_shared_rows():
    """Many gradients of one graph at once, as torch.autograd.functional.jacobian(vectorize=True) asks for them; one numerator for six groups."""
    x, a, b = (
        t.requires_grad_()
        for t in (
            torch.randn(3, 12, dtype=torch.float64),
            torch.randn(2, 6, dtype=torch.float64),
            torch.randn(6, 4, dtype=torch.float64),
        )
    )
    y, expected = katlib.rational(x, a, b), katlib.rational_reference(x, a, b)
    g = torch.randn(5, *y.shape, dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad(y, (x, a, b), g, is_grads_batched=True),
        torch.autograd.grad(expected, (x, a, b), g, is_grads_batched=True),
    ):
        assert_close(got, wanted)
    columns = torch.autograd.functional.jacobian(
        lambda a: katlib.rational(x.detach(), a, b.detach()), a.detach(), vectorize=True
    )
    assert_close(
        columns,
        torch.func.jacrev(lambda a: katlib.rational_reference(x.detach(), a, b.detach()))(
            a.detach()
        ),
    )
    assert torch.autograd.gradcheck(
        lambda *t: katlib.rational(*t), (x, a, b)
    ) and torch.autograd.gradgradcheck(lambda *t: katlib.rational(*t), (x, a, b))


def test_the_graph_has_one_node_for_the_whole_function():
    y = katlib.rational(
        torch.randn(3, 12, requires_grad=True),
        torch.randn(2, 6, requires_grad=True),
        torch.randn(6, 4),
    )
    assert [type(node).__name__ for node, _ in y.grad_fn.next_functions if node] == [
        "AccumulateGrad"
    ] * 2


def test_what_the_node_keeps_follows_the_coefficients_and_the_layout_of_x():
    """Coefficients changed in place between forward and backward are an error, as in any function of torch; x may be a transposed view."""
    x, a, b = (
        torch.randn(12, 5).T.requires_grad_(),
        torch.randn(2, 6, requires_grad=True),
        torch.randn(6, 4, requires_grad=True),
    )
    g = torch.randn(12, 5).T
    for mine, theirs in zip(
        *(
            torch.autograd.grad(f(x, a, b), (x, a, b), g)
            for f in (katlib.rational, katlib.rational_reference)
        )
    ):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    y = katlib.rational(x, a, b)
    with torch.no_grad():
        a += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace.* is deprecated", "ignore::torch.jit.TracerWarning"
)  # of what is traced here, each is true
def test_who_watches_the_dispatcher_sees_the_operator():
    """Eager mode calls the CPU kernel at once; a dispatch mode, a tracer or a subclass of Tensor still meets katlib::rational."""
    x, a, b = (
        t.requires_grad_() for t in (torch.randn(3, 12), torch.randn(2, 6), torch.randn(6, 4))
    )
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **kwargs or {})

    expected = katlib.rational(x, a, b)
    wanted = torch.autograd.grad(expected.sum(), (x, a, b))
    with Watch():
        got = torch.autograd.grad(katlib.rational(x, a, b).sum(), (x, a, b))
    assert (
        torch.ops.katlib.rational.default in seen
        and torch.ops.katlib.rational_backward.default in seen
    )
    assert_close(got, wanted)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, a, b)]
        assert katlib.rational(*fake).shape == x.shape
    a, b = a.detach(), b.detach()
    traced = torch.jit.trace(lambda x: katlib.rational(x, a, b), x.detach(), check_trace=False)
    other = torch.randn(3, 12)
    assert_close(traced(other), katlib.rational(other, a, b))


@pytest.mark.parametrize("name", operator.PRIVATE)
def test_torch_has_the_private_names_by_which_a_small_call_is_direct(name):
    """One that vanishes costs no result, but a small tensor twice the time."""
    there = torch._C
    for part in name.split("."):
        there = getattr(there, part, None)
    assert there is not None, f"torch {torch.__version__} has no torch._C.{name}"


def test_a_plain_call_is_direct(monkeypatch):
    """Forward and backward: both run with the operator taken away, each by one call of the kernel."""
    if not cpu.available(torch.float32, 5, 4):
        pytest.skip("there is no C++ compiler")
    called = []
    for name in ("forward", "backward"):
        monkeypatch.setattr(operator, name.upper(), None)
        monkeypatch.setattr(
            cpu,
            name,
            lambda *arguments, name=name, run=getattr(cpu, name): (
                called.append(name) or run(*arguments)
            ),
        )
    layer, x = katlib.GroupRational(16, groups=4), torch.randn(3, 16, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert called == ["forward", "backward"]
    leaves = [
        t.detach().requires_grad_() for t in (x, layer.weight_numerator, layer.weight_denominator)
    ]
    expected = katlib.rational_reference(*leaves)
    assert_close(y, expected)
    for mine, theirs in zip((x, *layer.parameters()), torch.autograd.grad(expected.sum(), leaves)):
        assert_close(mine.grad, theirs, rtol=1e-4, atol=1e-5)


def test_a_tensor_left_over_from_a_transform_is_served():
    """torch.func hands its own wrappers to the function; one that outlives the transform is no plain tensor, and torch unwraps it."""
    x, a, b = torch.randn(3, 12), torch.randn(2, 6), torch.randn(6, 4)
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(x)
    assert not operator._direct(kept[0], a, b)
    assert_close(katlib.rational(kept[0], a, b), katlib.rational_reference(x, a, b))


def test_what_hooks_put_in_the_place_of_a_saved_tensor_is_looked_at_anew():
    """The same values with other strides, as a hook that stores tensors elsewhere may bring them back: the kernel would read them in the wrong order."""
    x, a, b = (
        t.requires_grad_() for t in (torch.randn(3, 12), torch.randn(2, 6), torch.randn(6, 4))
    )
    g, brought = torch.randn(3, 12), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.T.contiguous(), lambda t: brought.append(t.T) or t.T
    ):
        y = katlib.rational(x, a, b)
    mine, expected = (
        torch.autograd.grad(y, (x, a, b), g),
        torch.autograd.grad(katlib.rational_reference(x, a, b), (x, a, b), g),
    )
    assert len(brought) == 3 and not any(t.is_contiguous() for t in brought)
    for got, wanted in zip(mine, expected):
        assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_torch_that_has_lost_a_private_name_is_served_all_the_same():
    program = """if True:
        import torch
        kept = torch._C._dispatch_keys
        del torch._C._dispatch_keys
        import katlib
        torch._C._dispatch_keys = kept                                  # torch itself may need it
        from katlib import ops as operator
        operator._Whole = None                                          # the way that asks for it
        leaves = [t.requires_grad_() for t in (torch.randn(3, 12), torch.randn(2, 6), torch.randn(6, 4))]
        ours, plain = (function(*leaves) for function in (katlib.rational, katlib.rational_reference))
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), leaves) for y in (ours, plain)), rtol=1e-4, atol=1e-4)"""
    subprocess.run([sys.executable, "-c", program], check=True)
