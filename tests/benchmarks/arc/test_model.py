import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arc import counting, flops
from benchmarks.arc.arms import Arm
from benchmarks.arc.model import Latents, ModelConfig, TinyRecursiveModel, rotary_table, rotate, truncated_normal

SMALL = ModelConfig(side=4, width=16, heads=2, inner=32, h_cycles=2, l_cycles=2, prefix=3, streams=4)
ARMS = ["plain", "identity", "free", "sinkhorn", "cayley"]


def inputs(config, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 12, (batch, config.side**2), generator=generator)
    return tokens, torch.randn(batch, config.width, generator=generator)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("scope", "norm"),
    [
        ("persistent", "post"),
        ("persistent", "post-joint"),
        ("persistent", "pre"),
        ("per_call", "post"),
        ("per_call", "pre"),
    ],
)
@pytest.mark.parametrize("arm", ARMS[1:])
def test_every_arm_starts_as_the_plain_model(arm, scope, norm):
    config = ModelConfig(**{**vars(SMALL), "streams_scope": scope, "norm_placement": norm})
    tokens, puzzle = inputs(config)
    results = []
    for text in ("plain", arm):
        model = TinyRecursiveModel(config, Arm.parse(text), seed=3).double()
        latents, logits, halt = model(model.initial(2), tokens, puzzle.double())
        logits.square().sum().backward()
        results.append((latents.y, logits, halt, model.embed.grad, model.head.weight.grad))
    y_plain, y = results[0][0], results[1][0]
    assert y.shape == ((2, 19, 4, 16) if scope == "persistent" else (2, 19, 16))
    torch.testing.assert_close(y.mean(-2) if scope == "persistent" else y, y_plain, rtol=0, atol=1e-6)
    for expected, actual in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arm", ARMS)
def test_recursion_is_its_definition(arm):
    model = TinyRecursiveModel(SMALL, Arm.parse(arm), seed=0)
    tokens, puzzle = inputs(SMALL)
    start = model.initial(2)
    latents, logits, halt = model(start, tokens, puzzle)
    x = torch.zeros(2, 19, 16)
    x[:, 0] = puzzle
    x[:, 3:] = model.embed[tokens]
    x = math.sqrt(16) * x
    if arm != "plain":
        x = x.unsqueeze(-2)
    y, z = start
    for _ in range(2):
        for _ in range(2):
            z = model.net(z + y + x, (model.cos, model.sin))
        y = model.net(y + z, (model.cos, model.sin))
    answer = y if arm == "plain" else y.mean(-2)
    torch.testing.assert_close(latents.y, y)
    torch.testing.assert_close(latents.z, z)
    torch.testing.assert_close(logits, answer[:, 3:] @ model.head.weight.mT)
    torch.testing.assert_close(halt, answer[:, 0] @ model.halt.weight[0] + model.halt.bias)


@pytest.mark.parametrize("scope", ["persistent", "per_call"])
@pytest.mark.parametrize("arm", [*ARMS[1:], "jpmhc-cayley"])
def test_fused_boundaries_compute_what_the_layers_do_one_by_one(arm, scope):
    config = ModelConfig(**{**vars(SMALL), "streams_scope": scope})
    model = TinyRecursiveModel(config, Arm.parse(arm), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    tokens, puzzle = inputs(config)
    results = []
    for stack in (model.net._stack, ()):
        model.net._stack = stack
        _, logits, _ = model(model.initial(2), tokens, puzzle.double())
        results.append((logits, *torch.autograd.grad(logits.square().sum(), list(model.net.parameters()))))
    for fused, expected in zip(*results, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", ["post", "post-joint"])
def test_coefficients_that_depend_on_no_token_are_made_once_a_segment(norm):
    config = ModelConfig(**{**vars(SMALL), "dynamic": False, "norm_placement": norm})
    model = TinyRecursiveModel(config, Arm.parse("cayley"), seed=0)
    made = []
    for sublayer in model.net.sublayers:
        sublayer.mixer.register_forward_hook(lambda mixer, inputs, output: made.append(mixer))
    tokens, puzzle = inputs(config)
    model(model.initial(2), tokens, puzzle)
    assert len(made) == len(model.net.sublayers)


def test_only_the_last_cycle_carries_gradient():
    """The gradient is that of one cycle started from the latents that the earlier ones left."""
    tokens, puzzle = inputs(SMALL)
    model = TinyRecursiveModel(SMALL, Arm.parse("cayley"), seed=0)
    model(model.initial(2), tokens, puzzle)[1].sin().sum().backward()
    full = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    one = TinyRecursiveModel(ModelConfig(**{**vars(SMALL), "h_cycles": 1}), Arm.parse("cayley"), seed=0)
    with torch.no_grad():
        between = one(one.initial(2), tokens, puzzle)[0]
    one(Latents(between.y, between.z), tokens, puzzle)[1].sin().sum().backward()
    cut = [p.grad for p in one.parameters() if p.grad is not None]
    assert len(full) == len(cut)
    for a, b in zip(full, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arm", ["plain", "cayley", "sinkhorn:dynamic=False"])
def test_all_cycles_carry_gradient_where_the_settings_say_so(arm):
    """The gradient is that of one long graph through both cycles, and more than the last cycle's."""
    tokens, puzzle = inputs(SMALL)
    puzzle = puzzle.double()
    config = ModelConfig(**{**vars(SMALL), "gradient_cycles": 2})
    model = TinyRecursiveModel(config, Arm.parse(arm), seed=0).double()
    model(model.initial(2), tokens, puzzle)[1].sin().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    y, z = model.initial(2)
    x = model.embed_input(tokens, puzzle)
    for _ in range(2):
        y, z = model.cycle(y, z, x)
    model.answer(y)[0].sin().sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    short = TinyRecursiveModel(SMALL, Arm.parse(arm), seed=0).double()
    short(short.initial(2), tokens, puzzle)[1].sin().sum().backward()
    difference = model.net.sublayers[0].branch.qkv.weight.grad - short.net.sublayers[0].branch.qkv.weight.grad
    assert difference.norm() > 1e-3


def test_streams_normalised_together_keep_their_relative_sizes():
    config = ModelConfig(**{**vars(SMALL), "norm_placement": "post-joint"})
    net = TinyRecursiveModel(config, Arm.parse("cayley"), seed=0).net
    x = torch.randn(2, 19, 4, 16) * torch.tensor([1.0, 2, 4, 8]).view(4, 1)
    table = rotary_table(19, 8)
    sizes = net(x, table).square().mean(-1).sqrt()
    torch.testing.assert_close(sizes.square().mean(-1), torch.ones(2, 19), rtol=1e-4, atol=1e-4)
    assert sizes[..., 3].mean() > 1.5 * sizes[..., 0].mean()


def test_streams_part_after_a_few_steps():
    model = TinyRecursiveModel(SMALL, Arm.parse("cayley"), seed=0)
    tokens, puzzle = inputs(SMALL)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        latents, logits, _ = model(model.initial(2), tokens, puzzle)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimiser.step()
    assert (latents.y - latents.y.mean(-2, keepdim=True)).norm() / latents.y.norm() > 1e-3


def test_rotary_positions_make_attention_relative():
    table = rotary_table(12, 8)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    score = [
        (rotate(q.expand(1, 1, 12, 8), table)[0, 0, i] * rotate(k.expand(1, 1, 12, 8), table)[0, 0, j]).sum()
        for i, j in ((2, 0), (7, 5), (11, 9))
    ]
    torch.testing.assert_close(score[0], score[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score[0], score[2], rtol=1e-6, atol=1e-6)


def test_truncated_normal_has_its_standard_deviation():
    values = truncated_normal((200_000,), 0.3, torch.Generator().manual_seed(0))
    assert abs(values.std().item() - 0.3) < 2e-3
    assert values.abs().max() < 0.3 * 2 / 0.87


# --- the closed forms of the reference page ----------------------------------------------------------------------


def test_parameters_of_the_published_model():
    assert parameters(TinyRecursiveModel(ModelConfig(), Arm.parse("plain"), 0)) == 6_828_545


@pytest.mark.parametrize(("arm", "coefficients"), [("identity", 8), ("cayley", 14), ("sinkhorn", 24), ("free", 24)])
def test_parameters_of_the_streams(arm, coefficients):
    model = TinyRecursiveModel(ModelConfig(), Arm.parse(arm), 0)
    assert parameters(model) == 6_828_545 + 4 * (coefficients * (4 * 512 + 1) + 3)


@pytest.mark.parametrize(
    ("l_cycles", "forward", "total"), [(6, 334.4, 557.3), (4, 238.9, 398.1)], ids=["H3 L6", "H3 L4"]
)
def test_operations_of_the_published_model(l_cycles, forward, total):
    config = ModelConfig(l_cycles=l_cycles)
    assert round(flops.segment(config, Arm.parse("plain"), train=False) / 1e9, 1) == forward
    assert round(flops.segment(config, Arm.parse("plain"), train=True) / 1e9, 1) == total


@pytest.mark.parametrize(("side", "total"), [(10, 40.9), (12, 57.2), (20, 159.5)])
def test_operations_at_smaller_grids(side, total):
    assert round(flops.segment(ModelConfig(side=side), Arm.parse("plain"), train=True) / 1e9, 1) == total


@pytest.mark.parametrize(("train", "published"), [(False, 343.2), (True, 572.05)])
def test_operations_with_sinkhorn_streams(train, published):
    """The published count leaves out read and write, which are no matrix products."""
    config, arm = ModelConfig(l_cycles=6), Arm.parse("sinkhorn")
    calls = 21 + 14 * train
    counted = flops.segment(config, arm, train) - calls * flops.residuals(config, arm).read_write
    assert counted / 1e9 == pytest.approx(published, abs=0.05 if not train else 0.01)


@pytest.mark.parametrize(
    ("arm", "cycles"),
    [*((arm, 1) for arm in ARMS), ("cayley", 2), ("jpmhc-cayley", 1), ("jpmhc-sinkhorn", 1), ("hc", 1)],
)
def test_operations_match_the_counter(arm, cycles):
    """`torch`'s counter sees matrix products alone: of the stream passes only the mixing, not read and write."""
    config = ModelConfig(**{**vars(SMALL), "gradient_cycles": cycles})
    unseen = (config.calls + 2 * config.gradient_calls) * flops.residuals(config, Arm.parse(arm)).read_write
    assert counting.segment(config, Arm.parse(arm)) == flops.segment(config, Arm.parse(arm), train=True) - unseen


@pytest.mark.parametrize(
    ("arm", "operations"),
    [
        ("plain", 0), ("identity", 0), ("free", 0), ("sinkhorn", None), ("sinkhorn:iterations=20", 1120),
        ("jpmhc-sinkhorn", 1120), ("jpmhc-cayley", 340), ("cayley:step=0.1", 352), ("grassmann", None),
    ],
)  # fmt: skip
def test_operations_of_the_charts(arm, operations):
    """Those of the two published mixers are the reference page's counts."""
    assert flops.chart(ModelConfig(), Arm.parse(arm)) == operations


@pytest.mark.parametrize("arm", [pytest.param("plain", marks=pytest.mark.slow), "cayley"])
def test_full_model_runs_forward_and_backward_at_full_size(arm):
    config = ModelConfig()
    model = TinyRecursiveModel(config, Arm.parse(arm), seed=0)
    tokens, puzzle = inputs(config, batch=1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        latents, logits, halt = model(model.initial(1), tokens, puzzle.requires_grad_())
        (logits.sum() + halt.sum()).backward()
    assert logits.shape == (1, 900, 12)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.net.sublayers[0].branch.qkv.weight.grad.abs().max() > 0
    assert latents.y.isfinite().all()
    if arm == "plain":
        assert counter.get_total_flops() == flops.segment(config, Arm.parse(arm), train=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 20, "heads": 4}, "width: expected an even multiple of heads=4, got 20"),
        ({"prefix": 0}, "prefix: expected at least 1"),
        ({"streams_scope": "none"}, "streams_scope: expected one of"),
        ({"norm_placement": "none"}, "norm_placement: expected one of"),
        ({"gradient_cycles": 4}, "gradient_cycles: expected 1 to h_cycles=3, got 4"),
    ],
)
def test_wrong_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)
