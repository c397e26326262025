import math

import pytest
import torch

from benchmarks import residuals, trainer
from benchmarks.language.model import NextCharacter
from benchmarks.language.text import ALPHABET, Corpus, encode
from benchmarks.trainer import Schedule
from benchmarks.transformer import TransformerConfig

TEXT = "abcd" * 200


def task(steps=4, windows=40):
    config = TransformerConfig(width=8, heads=2, blocks=1, length=8, streams=2)
    corpus = Corpus(encode(TEXT), encode(TEXT), "")
    return NextCharacter("toy", corpus, config, Schedule(steps, 8, lr=3e-2, warmup=2), windows)


def test_the_target_is_the_next_character():
    x, target = task().batch(torch.Generator().manual_seed(0))
    assert x.shape == target.shape == (8, 8)
    assert torch.equal(x[:, 1:], target[:, :-1])


def test_windows_cover_the_held_out_text_from_its_start_to_its_end():
    seen = []

    def uniform(x):
        seen.append(x)
        return torch.zeros(1, *x.shape, len(ALPHABET))

    (scores,) = task().evaluate(uniform)
    assert scores["bits_per_character"] == pytest.approx(math.log2(len(ALPHABET)))
    windows = torch.cat(seen)
    assert len(windows) == 40
    text = encode(TEXT)
    assert torch.equal(windows[0], text[:8])
    assert torch.equal(windows[-1], text[-9:-1])


def test_a_network_that_is_sure_and_right_takes_no_bits():
    def right(x):
        following = encode("abcd")[(x - ALPHABET.index("a") + 1) % 4]
        return 100.0 * torch.nn.functional.one_hot(following, len(ALPHABET)).float().unsqueeze(0)

    assert task().evaluate(right)[0]["bits_per_character"] == pytest.approx(0.0, abs=1e-6)


def test_training_learns_what_counting_pairs_knows():
    (run,) = trainer.train(task(steps=60), residuals.parse("plain"), [0])
    assert run["scores"]["bits_per_character"] < 0.5
