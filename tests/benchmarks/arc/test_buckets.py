"""Buckets of grid sides: what a corner of the square is, what it costs, and which samples it holds."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arc import buckets, flops
from benchmarks.arc.arms import Arm
from benchmarks.arc.batches import Batches
from benchmarks.arc.dataset import build
from benchmarks.arc.encode import EOG, FIRST_COLOUR, encode
from benchmarks.arc.model import ModelConfig, TinyRecursiveModel
from benchmarks.arc.presets import DataConfig, preset
from benchmarks.arc.tasks import load_arc_agi_1, subset
from tests.benchmarks.arc.squares import square, task

SMALL = ModelConfig(side=6, width=16, heads=2, inner=32, h_cycles=2, l_cycles=2, prefix=3)


@pytest.fixture(scope="module")
def small():
    return build(subset(load_arc_agi_1(), max_side=6), side=6, variants=3, seed=0)


# --- model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["plain", "cayley"])
def test_a_crop_is_the_square_whose_other_tokens_nobody_attends_to(arm, monkeypatch):
    model = TinyRecursiveModel(SMALL, Arm.parse(arm), 0).double()
    whole, puzzle = torch.randint(0, 12, (2, 36)), torch.randn(2, 16, dtype=torch.float64)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[:4, :4] = True
    corner = whole[:, inside.flatten()]
    latents, logits, halt = model(model.initial(2, side=4), corner, puzzle)
    _, full, _ = model(model.initial(2), whole, puzzle)
    assert not torch.allclose(logits, full[:, inside.flatten()])

    seen = torch.cat((torch.ones(3, dtype=torch.bool), inside.flatten()))
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: attention(q, k, v, attn_mask=seen[None]))
    latents_masked, masked, halt_masked = model(model.initial(2), whole, puzzle)
    torch.testing.assert_close(masked[:, inside.flatten()], logits)
    torch.testing.assert_close(halt_masked, halt)
    torch.testing.assert_close(latents_masked.z[:, seen], latents.z)


def test_the_whole_square_is_the_largest_crop():
    model = TinyRecursiveModel(SMALL, Arm.parse("plain"), 0)
    tokens, puzzle = torch.randint(0, 12, (2, 36)), torch.randn(2, 16)
    one, two = (model(model.initial(2, side=side), tokens, puzzle) for side in (None, 6))
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("length", [0, 35, 49])
def test_tokens_that_are_no_corner_are_named(length):
    model = TinyRecursiveModel(SMALL, Arm.parse("plain"), 0)
    latents = model.initial(1)
    latents = type(latents)(*(torch.zeros(1, 3 + length, 16) for _ in latents))
    with pytest.raises(ValueError, match=f"tokens: expected a square of side 1 to 6, got {length} tokens"):
        model(latents, torch.zeros(1, length, dtype=torch.long), torch.zeros(1, 16))


# --- operations ------------------------------------------------------------------------------------------------------


def test_operations_of_a_crop_match_the_counter():
    model, arm = TinyRecursiveModel(SMALL, Arm.parse("cayley"), 0), Arm.parse("cayley")
    tokens, puzzle = torch.randint(0, 12, (1, 16)), torch.randn(1, 16, requires_grad=True)
    counting = FlopCounterMode(display=False, custom_mapping=flops.COUNTER)
    with counting as counter, sdpa_kernel(SDPBackend.MATH):
        _, logits, halt = model(model.initial(1, side=4), tokens, puzzle)
        (logits.sum() + halt.sum()).backward()
    crop = dataclasses.replace(SMALL, side=4)
    unseen = (crop.calls + 2 * crop.gradient_calls) * flops.residuals(crop, arm).read_write
    assert counter.get_total_flops() == flops.segment(crop, arm, train=True) - unseen
    mean = flops.mean_segment(SMALL, arm, {4: 0.75, 6: 0.25}, train=True)
    assert mean == 0.75 * flops.segment(crop, arm, train=True) + 0.25 * flops.segment(SMALL, arm, train=True)


def test_operations_of_the_published_model_in_buckets():
    """The reference page's 156 instead of 398 GFLOP a sample, by the share of the tasks of ARC-AGI-1."""
    largest = [task.max_side for task in load_arc_agi_1()]
    held = np.array((10, 15, 20, 30))[np.searchsorted((10, 15, 20, 30), largest)]
    shares = {side: float(np.mean(held == side)) for side in (10, 15, 20, 30)}
    assert [round(share, 2) for share in shares.values()] == [0.32, 0.25, 0.21, 0.22]
    mean = flops.mean_segment(ModelConfig(), Arm.parse("plain"), shares, train=True)
    assert mean / 1e9 == pytest.approx(156, abs=1)


def test_what_is_held_out_has_no_part_in_the_choice_of_a_bucket():
    tasks = [task("up", 2, test=(1, 5)), task("down", 4, test=(5, 1))]
    data = build(tasks, side=6, variants=2, seed=0)
    assert buckets.task_sides(data, (2, 3, 4, 6)).tolist() == [2, 4]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_every_task_is_in_the_smallest_bucket_that_holds_its_training_grids(small):
    parts = buckets.divide(small, (3, 4, 6))
    assert list(parts) == [3, 4, 6]
    assert sum(len(part.ids) for part in parts.values()) == len(small.ids)
    groups = [set(part.group.tolist()) for part in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for (side, part), below in zip(parts.items(), (0, 3, 4), strict=True):
        for group in set(part.group.tolist()):
            largest = small.extent[small.group == group].max()
            assert below < largest <= side
        assert part.inputs.shape[1] == part.labels.shape[1] == side**2
        assert (part.num_ids, part.side) == (small.num_ids, side)


def test_a_crop_is_the_pair_encoded_at_its_side_with_the_mark_where_it_fits():
    data = build([task("a", 2, 3), task("b", 5)], side=6, variants=1, seed=0)
    part = buckets.divide(data, (3, 6))[3]
    expected = [encode(square(size, 1), 3) for size in (2, 3)]
    np.testing.assert_array_equal(part.inputs, expected)
    assert EOG in part.inputs[0]
    assert EOG not in part.inputs[1]
    np.testing.assert_array_equal(buckets.widen(buckets.crop(data.inputs[:1], 3), 6), data.inputs[:1])


def test_translation_keeps_every_grid_inside_its_bucket(small):
    part = buckets.divide(small, (5, 6))[5]
    batch = Batches(part, 400, seed=0, translate=True).next()
    assert batch["inputs"].shape == (400, 25)
    for name in ("inputs", "labels"):
        cells = (batch[name] >= FIRST_COLOUR).sum(1)
        rows = torch.from_numpy(getattr(part, name))[batch["rows"]]
        assert torch.equal(cells, (rows >= FIRST_COLOUR).sum(1))
    still = Batches(part, 400, seed=0, translate=False).next()
    assert not torch.equal(still["inputs"], batch["inputs"])


def test_a_bucket_without_samples_is_dropped():
    data = build([task("low", 1, 2), task("mid", 3), task("high", 4)], side=6, variants=2, seed=0)
    assert list(buckets.divide(data, (2, 3, 5, 6))) == [2, 3, 5]
    assert list(buckets.divide(data, (6,))) == [6]
    assert buckets.divide(data, ()) == {6: data}


@pytest.mark.parametrize("sides", [(3, 2), (2, 2), (0, 3), (-1,), (2.5, 3), (True, 3)])
def test_buckets_that_do_not_rise_from_one_are_named(sides):
    with pytest.raises(ValueError, match="buckets: expected integers of at least 1, each larger than the one before"):
        DataConfig(buckets=sides)


def test_buckets_beyond_the_square_are_named():
    with pytest.raises(ValueError, match=r"buckets: expected none above the side of the square, 3, got \(2, 4\)"):
        preset("smoke").changed(buckets=(2, 4))


@pytest.mark.parametrize(("height", "width", "side"), [(1, 1, 2), (2, 1, 2), (1, 3, 3), (4, 1, 6), (6, 6, 6)])
def test_the_smallest_bucket_that_holds_an_input(height, width, side):
    tokens = encode(np.zeros((height, width), dtype=np.uint8), 6)
    assert buckets.holding(tokens[None], (2, 3, 6)).tolist() == [side]


def test_steps_are_divided_in_proportion_to_the_samples():
    shares, steps = [0.32, 0.25, 0.21, 0.22], 5000
    for seed in range(3):
        picked = np.array([buckets.pick(shares, seed, step) for step in range(1, steps + 1)])
        for index, share in enumerate(shares):
            so_far = np.cumsum(picked == index) - share * np.arange(1, steps + 1)
            assert np.abs(so_far).max() < 5
    assert {buckets.pick([1.0], 0, step) for step in range(100)} == {0}
    first, second = ([buckets.pick(shares, seed, step) for step in range(50)] for seed in (0, 1))
    assert first != second
