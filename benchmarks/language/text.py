"""The text of the language task: the topics of Python's own help, and how it is cut and counted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Everything a page of plain text needs; other characters become the last one.
ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127)) + "�"
_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """Text as numbers.

    Attributes
    ----------
    train, held_out : Tensor of int64, shape (characters,)
        Places in `ALPHABET`; every tenth topic, in the order of their names, is held out whole.
    sha256 : str
        Of the whole text: it changes with Python's version, and results compare only where it agrees.
    """

    train: Tensor
    held_out: Tensor
    sha256: str


def corpus(topics: Mapping[str, str] | None = None) -> Corpus:
    """Return the text.

    Parameters
    ----------
    topics : mapping, optional
        Name to text; by default ``pydoc_data.topics``, what ``help("for")`` shows.
    """
    if topics is None:
        # The reference manual's pages about the language, in every installation of Python.
        from pydoc_data.topics import topics
    names = sorted(topics)
    parts: dict[bool, list[str]] = {True: [], False: []}
    for number, name in enumerate(names):
        parts[number % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1].append(topics[name] + "\n")
    text = "".join(topics[name] for name in names)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(encode("".join(parts[False])), encode("".join(parts[True])), digest)


def encode(text: str) -> Tensor:
    """Return the places in `ALPHABET` of the characters of a text, int64."""
    place = {character: i for i, character in enumerate(ALPHABET)}
    return torch.tensor([place.get(character, len(ALPHABET) - 1) for character in text], dtype=torch.int64)


def count_models(text: Corpus) -> dict[str, float]:
    """Return the bits a character that counting takes on the held-out text.

    ``unigram`` knows the frequency of every character, ``bigram`` also the character before; both from the training
    text, with one added to every count.
    """
    size = len(ALPHABET)
    single = torch.bincount(text.train, minlength=size).double() + 1
    pairs = torch.zeros(size, size, dtype=torch.float64)
    ones = torch.ones(len(text.train) - 1, dtype=torch.float64)
    pairs.index_put_((text.train[:-1], text.train[1:]), ones, accumulate=True)
    pairs += 1
    unigram = -(single / single.sum()).log()[text.held_out[1:]].mean()
    bigram = -(pairs / pairs.sum(1, keepdim=True)).log()[text.held_out[:-1], text.held_out[1:]].mean()
    return {"unigram": float(unigram) / math.log(2), "bigram": float(bigram) / math.log(2)}
