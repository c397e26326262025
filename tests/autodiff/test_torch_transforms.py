"""Every way of asking PyTorch for a derivative of the three maps gives the right number or raises."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from jpmhc import autodiff
from tests.autodiff.maps import MAPS

torch.manual_seed(0)
ARGUMENT = torch.randn(2, 3, 3, dtype=torch.float64)
TANGENT = torch.randn(2, 3, 3, dtype=torch.float64)
WEIGHT = torch.randn(3, 3, dtype=torch.float64)


def loss(f):
    return lambda x: (WEIGHT * f(x) ** 2).sum()


def backward(f):
    def call(x):
        x = x.detach().clone().requires_grad_()
        return torch.autograd.grad(loss(f)(x), x)[0]

    return call


def double_backward(f):
    def call(x):
        x = x.detach().clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(f)(x), x, create_graph=True)
        return torch.autograd.grad((WEIGHT * first).sum(), x)[0]

    return call


def dual_number(f):
    def call(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, TANGENT))).tangent

    return call


def dual_number_through_backward(f):
    """Forward over reverse without ``create_graph``: gradients are off in backward, and yet carry a tangent."""

    def call(x):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(x.detach().clone().requires_grad_(), TANGENT)
            return forward_ad.unpack_dual(torch.autograd.grad(loss(f)(x), x)[0]).tangent

    return call


def push(f):
    return lambda x: jvp(f, (x,), (TANGENT,))[1]


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: grad(loss(f)),
    "vmap": lambda f: vmap(f),
    "vmap of grad": lambda f: vmap(grad(loss(f))),
    "grad of vmap": lambda f: grad(loss(vmap(f))),
    "jvp": push,
    "vmap of jvp": lambda f: vmap(lambda x: jvp(f, (x,), (TANGENT[0],))[1]),
    "jvp of vmap": lambda f: push(vmap(f)),
    "jvp of grad": lambda f: push(grad(loss(f))),
    "grad of grad": lambda f: grad(lambda x: (WEIGHT * grad(loss(f))(x)).sum()),
    "grad of jvp": lambda f: grad(lambda x: (WEIGHT * push(f)(x)).sum()),
    "jvp of jvp": lambda f: push(push(f)),
    "hessian": lambda f: lambda x: hessian(loss(f))(x[0]),
    "jacrev of jacfwd": lambda f: lambda x: jacrev(jacfwd(loss(f)))(x[0]),
}
EAGER_ONLY = {
    "backward": backward,
    "double backward": double_backward,
    "dual number": dual_number,
    "dual number through backward": dual_number_through_backward,
    "jacfwd of jacfwd": lambda f: lambda x: jacfwd(jacfwd(loss(f)))(x[0]),
    "third derivative": lambda f: lambda x: jacfwd(jacrev(jacrev(loss(f))))(x[0]),
}
SLOW_TO_TRACE = {
    "sinkhorn": {"hessian", "jacrev of jacfwd"},
    "cayley": {"hessian", "jacrev of jacfwd"},
    "polar": {"jvp of grad", "grad of grad", "grad of jvp", "jvp of jvp", "hessian", "jacrev of jacfwd"},
}


@pytest.mark.parametrize("transform", [*TRANSFORMS, *EAGER_ONLY])
@pytest.mark.parametrize("name", MAPS)
def test_eager_derivative_is_that_of_the_definition(name, transform):
    function, definition = MAPS[name]
    apply = {**TRANSFORMS, **EAGER_ONLY}[transform]
    torch.testing.assert_close(apply(function)(ARGUMENT), apply(definition)(ARGUMENT), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        pytest.param(name, transform, marks=[pytest.mark.slow] * (transform in SLOW_TO_TRACE[name]))
        for name in MAPS
        for transform in TRANSFORMS
    ],
)
def test_traced_derivative_is_that_of_the_definition_or_raises(name, transform):
    function, definition = MAPS[name]
    apply = TRANSFORMS[transform]
    torch._dynamo.reset()
    traced = torch.compile(apply(function), fullgraph=True, backend="aot_eager")
    try:
        result = traced(ARGUMENT)
    except (torch._dynamo.exc.TorchRuntimeError, torch._dynamo.exc.Unsupported):
        if transform != "jvp of jvp":  # torch 2.13 and 2.14 fail to trace even a product with a constant there
            raise
    else:
        torch.testing.assert_close(result, apply(definition)(ARGUMENT), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_backward_of_a_traced_function_is_that_of_the_definition(name, backend):
    function, definition = MAPS[name]
    torch._dynamo.reset()
    traced = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(backward(traced)(ARGUMENT), backward(definition)(ARGUMENT), rtol=1e-10, atol=1e-11)


@pytest.mark.filterwarnings("error:Dynamo does not know how to trace")
@pytest.mark.parametrize("name", MAPS)
def test_a_backward_pass_that_is_compiled_by_itself_is_that_of_the_definition(name):
    function, definition = MAPS[name]
    torch._dynamo.reset()
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    result = function(x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        (WEIGHT * result).sum().backward()
    expected = torch.autograd.grad((WEIGHT * definition(x)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "kept"), [("sinkhorn", 1), ("cayley", 1), ("polar", 2)])
def test_a_traced_function_saves_no_iterate(name, kept):
    torch._dynamo.reset()
    traced = torch.compile(MAPS[name][0], fullgraph=True, backend="aot_eager")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        traced(ARGUMENT.clone().requires_grad_())
    assert [tensor.shape for tensor in saved] == [ARGUMENT.shape] * kept


@pytest.mark.parametrize(("backend", "message"), [("aot_eager", "double backward"), ("eager", "create_graph=True")])
@pytest.mark.parametrize("name", MAPS)
def test_double_backward_of_a_traced_function_raises(name, backend, message):
    torch._dynamo.reset()
    # Behind another function, whose own second derivative would be found whatever becomes of the map's.
    traced = torch.compile(lambda x: MAPS[name][0](torch.sin(x)), fullgraph=True, backend=backend)
    with pytest.raises(RuntimeError, match=message):
        double_backward(traced)(ARGUMENT)
    torch.testing.assert_close(
        backward(traced)(ARGUMENT), backward(lambda x: MAPS[name][1](torch.sin(x)))(ARGUMENT), rtol=1e-10, atol=1e-11
    )


@pytest.mark.parametrize(
    "function",
    [
        partial(autodiff.sinkhorn, iterations=3),
        partial(autodiff.sinkhorn, row_marginals=torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)),
        partial(autodiff.cayley, step=0.3, iterations=2),
    ],
    ids=["sinkhorn iterations", "sinkhorn marginals", "cayley iterations"],
)
@pytest.mark.parametrize("transform", ["value", "grad", "vmap of grad", "jvp", "grad of grad"])
def test_traced_options_agree_with_eager_ones(function, transform):
    apply = TRANSFORMS[transform]
    torch._dynamo.reset()
    traced = torch.compile(apply(function), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(ARGUMENT), apply(function)(ARGUMENT), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", MAPS)
def test_gradcheck_and_gradgradcheck_in_all_modes(name):
    function = MAPS[name][0]
    argument = ARGUMENT.clone().requires_grad_()
    torch.autograd.gradcheck(
        function, (argument,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    torch.autograd.gradgradcheck(function, (argument,), check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("name", MAPS)
def test_vmap_over_any_axis_is_a_batch(name):
    function = MAPS[name][0]
    batch = torch.randn(3, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(vmap(function, in_dims=1)(batch), function(batch.movedim(1, 0)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", MAPS)
def test_batched_backward_is_the_stack_of_backwards(name):
    argument = ARGUMENT.clone().requires_grad_()
    result = MAPS[name][0](argument)
    cotangents = torch.randn(4, *result.shape, dtype=result.dtype)
    (together,) = torch.autograd.grad(result, argument, cotangents, retain_graph=True, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(result, argument, cotangent, retain_graph=True)[0] for cotangent in cotangents]
    torch.testing.assert_close(together, torch.stack(one_by_one), rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("name", MAPS)
def test_linearised_it_pushes_tangents_as_the_definition_does(name):
    function, definition = MAPS[name]
    value, pushed = linearize(function, ARGUMENT)
    torch.testing.assert_close(value, definition(ARGUMENT), rtol=1e-10, atol=1e-11)
    for tangent in (TANGENT, -2 * TANGENT + 1):
        torch.testing.assert_close(pushed(tangent), jvp(definition, (ARGUMENT,), (tangent,))[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("transform", ["value", "grad", "jvp"])
@pytest.mark.parametrize("name", MAPS)
def test_traced_to_a_graph_it_is_the_definition_at_other_arguments_too(name, transform):
    function, definition = MAPS[name]
    apply = TRANSFORMS[transform]
    graph = make_fx(lambda x: apply(function)(x))(ARGUMENT)
    other = ARGUMENT + 0.3 * TANGENT
    torch.testing.assert_close(graph(other), apply(definition)(other), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", MAPS)
def test_traced_before_dispatch_it_is_the_definition_at_other_arguments_too(name):
    function, definition = MAPS[name]
    with torch.no_grad():
        graph = make_fx(lambda x: function(x), pre_dispatch=True)(ARGUMENT)
    other = ARGUMENT + 0.3 * TANGENT
    torch.testing.assert_close(graph(other), definition(other), rtol=1e-10, atol=1e-11)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", MAPS)
def test_traced_to_torchscript_it_is_the_definition_and_refuses_a_derivative(name):
    function, definition = MAPS[name]
    scripted = torch.jit.trace(function, (ARGUMENT.clone().requires_grad_(),))
    other = (ARGUMENT + 0.3 * TANGENT).requires_grad_()
    torch.testing.assert_close(scripted(other), definition(other), rtol=1e-10, atol=1e-11, check_stride=False)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        scripted(other).sum().backward()


@pytest.mark.parametrize("name", MAPS)
def test_gradient_checkpointing_changes_nothing(name):
    from torch.utils.checkpoint import checkpoint

    def recomputed(x):
        return checkpoint(MAPS[name][0], x, use_reentrant=False)

    torch.testing.assert_close(backward(recomputed)(ARGUMENT), backward(MAPS[name][0])(ARGUMENT), rtol=0, atol=0)


@pytest.mark.parametrize("name", MAPS)
def test_autocast_never_lowers_the_precision(name):
    function = MAPS[name][0]
    argument = torch.randn(3, 5, 5).requires_grad_()
    result = function(argument)
    (gradient,) = torch.autograd.grad(result.square().sum() + result.sum(), argument)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = function(argument)
        (lowered_gradient,) = torch.autograd.grad(lowered.square().sum() + lowered.sum(), argument)
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, result, rtol=0, atol=0)
    torch.testing.assert_close(lowered_gradient, gradient, rtol=1e-5, atol=1e-5)
