import hashlib
import math
from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.language.text import ALPHABET, Corpus, corpus, count_models, encode

TOPICS = {f"topic {i:02}": f"page {i} says é and no more\n" for i in range(20)}


def decode(places):
    return "".join(ALPHABET[i] for i in places.tolist())


def test_every_tenth_topic_is_held_out_whole():
    text = corpus(TOPICS)
    held_out = decode(text.held_out)
    assert held_out.count("page") == 2
    assert "page 9 says" in held_out
    assert "page 19 says" in held_out
    assert decode(text.train).count("page") == 18


def test_the_order_of_the_topics_does_not_matter():
    shuffled = dict(reversed(TOPICS.items()))
    first, second = corpus(TOPICS), corpus(shuffled)
    assert first.sha256 == second.sha256 == hashlib.sha256("".join(TOPICS.values()).encode()).hexdigest()
    assert first.train.equal(second.train)


def test_unknown_characters_become_the_last_one():
    assert decode(encode("aé\n")) == f"a{ALPHABET[-1]}\n"


def test_python_s_own_help_is_long_enough_and_plain():
    text = corpus()
    assert len(text.train) > 200_000
    assert len(text.held_out) > 10_000
    assert (text.train == len(ALPHABET) - 1).double().mean() < 0.01
    assert len(text.sha256) == 64


def test_counting_takes_the_bits_that_counts_by_hand_give():
    train, held_out = "abab ba", "ba b"
    found = count_models(Corpus(encode(train), encode(held_out), ""))
    size = len(ALPHABET)
    single, pairs = Counter(train), Counter(pairwise(train))
    before = Counter(train[:-1])
    unigram = [math.log2((single[c] + 1) / (len(train) + size)) for c in held_out[1:]]
    bigram = [math.log2((pairs[a, b] + 1) / (before[a] + size)) for a, b in pairwise(held_out)]
    assert found["unigram"] == pytest.approx(-sum(unigram) / 3)
    assert found["bigram"] == pytest.approx(-sum(bigram) / 3)
