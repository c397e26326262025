"""PTX as a list of instructions."""

from __future__ import annotations

import re
from typing import NamedTuple

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)(.*?)\n\{", re.S)
_STATEMENT = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_LABEL = re.compile(r"(\$[\w$]+):\s*")
# What says nothing about what is computed: declarations, places in the source, the braces of a scope.
_SILENT = re.compile(r"\.(?:loc|pragma)[^\n]*(?:\n|$)|\.reg\b.*$|[{}]")
_LARGEST = re.compile(r"\.(?:reqntid|maxntid) (\d+)")


class Instruction(NamedTuple):
    """One statement."""

    guard: str | None
    """Predicate of the threads that take it."""
    negated: bool
    name: str
    """Its first word, as ``ld``."""
    words: tuple[str, ...]
    """The others, as ``global``, ``v4``, ``b32``."""
    operands: tuple[str, ...]
    text: str


class Kernel:
    """A compiled kernel.

    Parameters
    ----------
    ptx : str
        With one entry point.

    Attributes
    ----------
    name : str
        Of the entry point.
    parameters : list of str
        Their names, in the order in which the kernel takes them.
    threads : int
        Of a block.
    code : list of Instruction
    labels : dict
        From the name of a label to the index of the instruction after it.
    undefined : set of str
        Registers that no instruction writes: what the compiler leaves open.
    """

    def __init__(self, ptx: str) -> None:
        ptx = re.sub(r"//[^\n]*", "", ptx)
        entry = _ENTRY.search(ptx)
        assert entry is not None, "no entry point"
        self.name = entry[1]
        self.parameters = re.findall(r"(\w+_param_\d+)", entry[2])
        threads = _LARGEST.search(entry[3])
        assert threads is not None, "no number of threads"
        self.threads = int(threads[1])
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        body = re.split(r"\n\s*\.(?:file|section)", ptx[entry.end() :])[0]
        for statement in re.split(r";|\n(?=\$)|(?<=:)\n", body):
            self._add(statement.strip())
        written = {name for given in self.code if given.operands for name in listed(given.operands[0])}
        self.undefined = set(re.findall(r"%[a-z]+\d+", body)) - written

    def _add(self, text: str) -> None:
        while True:
            if label := _LABEL.match(text):
                self.labels[label[1]] = len(self.code)
            found = label or _SILENT.match(text)
            if found is None:
                break
            text = text[found.end() :].strip()
        if not text:
            return
        parsed = _STATEMENT.match(text)
        assert parsed is not None, f"not understood: {text!r}"
        name, *words = parsed[3].replace("::", ".").split(".")
        self.code.append(
            Instruction(parsed[2], parsed[1] == "!", name, tuple(words), tuple(_separated(parsed[4])), text)
        )


def listed(operand: str) -> list[str]:
    """Return the registers of an operand, one or several in braces."""
    return [name.strip() for name in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def _separated(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]
