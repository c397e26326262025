"""Nothing in a layer asks the host for a value, so that CUDA graphs can hold it: forward and backward, every mixer.

Where there is no GPU the passes run on tensors without data, on which looking at a value is an error; the operations of
`jpmhc.kernels` run their references there, which take the way of an accelerator.
"""

import copy
import gc

import pytest
import torch
from torch import nn

from jpmhc import layers, manifolds
from tests.no_host import FACTORISATIONS, NoHost, pretend_to_capture

WIDTH = 8


def passes(model, *shape):
    with NoHost() as mode:
        x = torch.randn(*shape, device="meta", requires_grad=True)
        model(x).sin().sum().backward()
    assert x.grad.shape == x.shape
    return mode


MIXERS = [str(info) for info in layers.mixers()]
CHARTS = [
    *((str(info), n) for info in layers.mixers() for n in (4, 8) if info.supports(n)),
    (layers.Sinkhorn(4, iterations=20, clamp=10.0), 4),
    (layers.Permutations(4, layers.JPMHC_PERMUTATIONS), 4),
    (layers.Kronecker(5, (5,)), 5),
    (layers.Grassmann(4, reflector=True), 4),
    *(
        (layers.Manifold(4, getattr(manifolds, name)(), tangent=True), 4)
        for name in ("SpecialOrthogonal", "Stiefel", "Birkhoff", "Grassmann")
    ),
]


@pytest.mark.parametrize(("mixer", "streams"), CHARTS, ids=lambda value: str(value).partition("\n")[0])
def test_forward_and_backward_of_a_layer_never_ask_the_host(mixer, streams):
    hc = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), streams=streams, mixer=copy.deepcopy(mixer))
    ran = passes(hc.to("meta"), 5, streams, WIDTH).ran
    assert {"boundary_forward", "boundary_backward"} <= ran
    if mixer == "sinkhorn":
        assert {"sinkhorn_forward", "sinkhorn_adjoint"} <= ran


@pytest.mark.parametrize("streams", [4, 8])
@pytest.mark.parametrize("mixer", MIXERS)
def test_no_mixer_calls_a_library_that_graphs_may_not_hold(mixer, streams, monkeypatch):
    pretend_to_capture(monkeypatch)
    if (mixer, streams) in CHARTS:
        hc = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), streams=streams, mixer=mixer)
        assert not passes(hc.to("meta"), 5, streams, WIDTH).called & FACTORISATIONS


OPTIONS = [
    {"gate": "sigmoid", "norm": "layer"},
    {"gate": "tanh", "norm": "streams"},
    {"norm": "streams-layer"},
    {"norm": None, "static": False},
    {"dynamic": False},
    {"projection": "published"},
    {"projection": "shared", "mixer": "free"},
    {"gate": "uniform", "stream_embedding": True},
    {"fractions": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_other_forms_of_a_layer_never_ask_the_host(options):
    with torch.device("meta"):
        hc = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), **options)
    # Layers that read several vectors have no boundary of their own.
    wanted = (
        {"cayley_forward", "cayley_adjoint"} if "fractions" in options else {"boundary_forward", "boundary_backward"}
    )
    assert wanted <= passes(hc, 5, 4, WIDTH).ran


@pytest.mark.parametrize("kind", [layers.HyperStack, layers.SinglePass])
def test_chains_and_ends_never_ask_the_host(kind):
    with torch.device("meta"):
        chain = kind(layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), layer_index=i) for i in range(3))
        head = [layers.StreamHead(WIDTH, 4)] if kind is layers.HyperStack else []
        model = nn.Sequential(layers.StreamEmbedding(WIDTH, 4), chain, *head)
    assert {"boundary_forward", "boundary_backward"} <= passes(model, 5, WIDTH).ran


MEASURES = ("residual", "sigma_min", "sigma_max", "distance_from_identity", "read_entropy", "write_entropy")


@pytest.mark.parametrize("mixer", MIXERS)
def test_statistics_never_ask_the_host_until_they_are_read(mixer):
    hc = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), mixer=mixer).to("meta")
    passes(hc, 5, 4, WIDTH)
    with NoHost():
        (found,) = layers.statistics(hc)
        for measure in MEASURES:
            assert getattr(found, measure).shape == (5,)


def test_a_look_at_a_value_is_seen():
    class Looking(layers.Free):
        def forward(self, raw):
            matrix = super().forward(raw)
            return matrix if matrix.amax() > 0 else -matrix

    class Fetching(layers.Free):
        def forward(self, raw):
            return super().forward(raw) * torch.ones(4)

    for mixer in (Looking(4), Fetching(4)):
        with torch.device("meta"):
            hc = layers.HyperConnection(WIDTH, nn.Linear(WIDTH, WIDTH), mixer=mixer)
        with pytest.raises((RuntimeError, NotImplementedError)):
            passes(hc, 5, 4, WIDTH)


CAPTURE = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@CAPTURE
@pytest.mark.parametrize("mixer", MIXERS)
def test_forward_and_backward_are_captured_in_a_cuda_graph(mixer):
    torch.manual_seed(0)
    hc = layers.HyperConnection(64, nn.Linear(64, 64), mixer=mixer).cuda()
    with torch.no_grad():
        for parameter in set(layers.mixing_parameters(hc)) - set(hc.mixer.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    # Autograd remembers for every parameter the stream of the graph that first asked for its gradient, as long as that
    # graph lives: a capture after an eager pass would wait for the default stream, which it must not. The eager pass
    # therefore has a module of its own, and nothing but numbers is kept of it.
    eager = copy.deepcopy(hc)
    x, sample = torch.randn(2, 16, 4, 64, device="cuda")
    x, eager_x, sample = (t.clone().requires_grad_() for t in (x, x, sample))
    expected = eager(eager_x)
    expected.sin().sum().backward()
    expected, gradients = expected.detach(), [t.grad for t in (eager_x, *eager.parameters())]
    # What an older graph leaves when it is collected (the workspaces of cuBLAS, in torch 2.13) is not of this one.
    gc.collect()
    graphed = torch.cuda.make_graphed_callables(hc, (sample,))
    # Its warm-up and its capture ask for gradients without storing them.
    assert all(p.grad is None for p in hc.parameters())
    out = graphed(x)
    out.sin().sum().backward()
    torch.testing.assert_close(out.detach(), expected, rtol=1e-5, atol=1e-5)
    for t, gradient in zip((x, *hc.parameters()), gradients, strict=True):
        torch.testing.assert_close(t.grad, gradient, rtol=1e-4, atol=1e-5)
    del graphed.forward  # which holds the graphs in a cycle
