"""What a few matrices need beside right numbers: shapes that fit, memory of torch's own, no trace of neighbours."""

import pytest
import torch

from jpmhc import autodiff, kernels, manifolds
from tests.kernels.ways import way

D = {"dtype": torch.float64}
EYE = torch.eye(4, **D)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **D)


UNLIKE = {
    "sinkhorn_adjoint": lambda: (normal(5, 4, 4).exp(), normal(4, 4)),
    "sinkhorn_potentials": lambda: (normal(5, 4, 4).exp(), normal(4, 4)),
    "sinkhorn_balanced": lambda: (normal(5, 4, 4).exp(), normal(4, 4), 2),
    "birkhoff_retraction": lambda: (normal(3, 4, 4).exp(), normal(4, 4), True, 1e-30, 1e-15, 64),
    "cayley_adjoint": lambda: (EYE.expand(3, 4, 4), normal(4, 4), 1.0),
    "cayley_retraction": lambda: (EYE.expand(3, 4, 4), normal(4, 4, 3)),
    "cayley_transport": lambda: (EYE.expand(3, 4, 4), normal(3, 4, 4), normal(1, 4, 4)),
    "tangent_part": lambda: (EYE.expand(3, 4, 4), normal(4, 4), 1.0, -0.5, -0.5),
    "quaternion_adjoint": lambda: (normal(3, 2, 4), normal(4, 4)),
    "cayley_forward": lambda: (normal(1, 16, 3), 1.0),
    "quaternion_forward": lambda: (normal(2, 4, 4),),
    "inverse": lambda: (normal(16, 5, 2),),
}


@pytest.mark.parametrize("name", ["numba", "tiles"])
@pytest.mark.parametrize("operation", UNLIKE)
def test_what_does_not_fit_is_left_to_the_reference(operation, name):
    args = UNLIKE[operation]()
    with way(name):
        assert kernels.choice(operation, *args).backend == "reference"


def test_a_projection_repeated_no_time_is_refused():
    for name in ("numba", "reference"):
        with kernels.backend(name), pytest.raises(ValueError, match="times: expected at least 1, got 0"):
            kernels.sinkhorn_balanced(normal(4, 4).exp(), normal(4, 4), 0)


@pytest.mark.parametrize("name", ["numba", "tiles"])
def test_results_can_be_resized_and_written_to(name):
    x = kernels.cayley_forward(normal(3, 4, 4), 1.0)
    with way(name):
        results = [
            kernels.cayley_forward(normal(3, 5, 5), 1.0),
            kernels.sinkhorn_sweeps(normal(3, 5, 5), None, None, 3),
            kernels.polar_forward(normal(3, 5, 4)),
            *kernels.cayley_transport(x, x, x),
        ]
    for result in results:
        result.untyped_storage().resize_(0)
        result.untyped_storage().resize_(8 * result.numel())
        result.zero_()
        assert result.untyped_storage().nbytes() == 8 * result.numel()
        assert not result.any()


@pytest.mark.parametrize("name", ["numba", "tiles", "reference"])
def test_results_are_where_the_arguments_are_whatever_the_default_device(name):
    x, p = normal(3, 5, 5), normal(3, 5, 5).exp()
    calls = {
        "cayley_forward": (x, 1.0),
        "cayley_adjoint": (x, x, 1.0),
        "cayley_retraction": (torch.linalg.qr(x[..., :3]).Q, x[..., :3].contiguous()),
        "tangent_part": (torch.linalg.qr(x).Q, x, 1.0, -0.5, -0.5),
        "orthonormalise": (x,),
        "polar_forward": (x,),
        "inverse": (x,),
        "newton_polar": (x,),
        "sinkhorn_forward": (x, None, None, 1e-14, 64),
        "sinkhorn_sweeps": (x, None, None, 3),
        "sinkhorn_balanced": (p, x, 2),
        "sinkhorn_scaled": (normal(1, 20, 20).exp(), 1e-30, 1e-14, 64),
        "birkhoff_retraction": (p, x, True, 1e-30, 1e-14, 64),
        "quaternion_forward": (normal(3, 2, 4),),
        "quaternion_adjoint": (normal(3, 2, 4), normal(3, 4, 4)),
    }
    with way(name):
        for operation, args in calls.items():
            expected = getattr(kernels, operation)(*args)
            with torch.device("meta"):
                found = getattr(kernels, operation)(*args)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_numbers_that_are_not_in_memory_as_they_are():
    x = normal(3, 4, 4)
    with way("numba"):
        negated = kernels.cayley_forward(torch._neg_view(x), 1.0)
        assert torch.equal(negated, kernels.cayley_forward(-x, 1.0))
        zero = kernels.cayley_forward(torch._efficientzerotensor((3, 4, 4), **D), 1.0)
    assert torch.equal(zero, EYE.expand(3, 4, 4))


def test_a_trace_records_operations_and_not_their_results():
    manifold, x, y = manifolds.SpecialOrthogonal(), normal(2, 4, 4), normal(2, 4, 4, seed=1)

    def step(u):
        return manifold.retr(EYE.expand(2, 4, 4), manifold.proju(EYE.expand(2, 4, 4), u))

    with torch.no_grad():
        traced = torch.jit.trace(step, (x,), check_trace=False)
        torch.testing.assert_close(traced(y), step(y), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["numba", "tiles"])
@pytest.mark.parametrize("scale", [1e-161, 1e-158, 1e-150])
def test_columns_whose_squares_have_few_digits_are_orthonormalised(scale, name):
    matrix = normal(3, 6, 3)
    matrix[1] *= scale
    matrix[2, :, 1] *= scale
    with way(name):
        q = kernels.orthonormalise(matrix)
    assert (q.mT @ q - torch.eye(3, **D)).abs().max() < 1e-14


@pytest.mark.parametrize("length", [1e4, 1e8, 1e12, 1e15])
@pytest.mark.parametrize("shape", [(20, 6, 3), (20, 16, 7), (20, 4, 4)])
def test_steps_of_absurd_length_end_on_the_manifold(shape, length):
    x = torch.linalg.qr(normal(*shape)).Q
    raw = normal(shape[0], shape[2], shape[2], seed=1)
    u = x @ (raw - raw.mT) * length
    with way("numba"):
        y = kernels.cayley_retraction(x, u)
    assert (y.mT @ y - torch.eye(shape[2], **D)).abs().max() < 1e-13


@pytest.mark.parametrize("matrix", [torch.zeros(4, 2), torch.ones(2, 2), torch.diag(torch.tensor([1.0, 2.0, 0.0]))])
def test_matrices_without_full_rank_have_some_factor(matrix):
    stack = torch.stack([matrix, matrix + torch.eye(*matrix.shape)]).double()
    with way("numba"):
        factor = kernels.polar_forward(stack)
        assert torch.equal(factor[1], kernels.polar_forward(stack[1:])[0])
    p = matrix.shape[1]
    assert (factor.mT @ factor - torch.eye(p, **D)).abs().max() < 1e-14


def test_what_the_reference_finishes_does_not_depend_on_its_neighbours_either():
    logits = normal(12, 4, 4) * torch.linspace(1, 1000, 12, **D)[:, None, None]
    with way("numba"):
        together = kernels.sinkhorn_forward(logits, None, None, 1e-15, 128)
        alone = torch.cat([kernels.sinkhorn_forward(one, None, None, 1e-15, 128) for one in logits.split(1)])
    assert torch.equal(together, alone)


def test_weights_of_another_batch_are_refused():
    for weights, matrix in ((normal(3, 4, 4).exp(), normal(4, 4)), (normal(4, 4).exp(), normal(3, 4, 4))):
        with pytest.raises(RuntimeError):
            autodiff.balanced(weights, matrix)
