"""Memory of a call: what it holds at once, whatever was held before it."""

import torch

from benchmarks.memory import allocated_mib, peak_mib, saved_mib

MIB = 2**18  # numbers of float32


def test_what_is_held_at_once_counts_and_not_what_is_made_in_all():
    def in_turn():
        for _ in range(4):
            torch.empty(MIB)

    def together():
        return torch.empty(MIB), torch.empty(2 * MIB), torch.empty(MIB)

    assert allocated_mib(in_turn) == 1
    assert allocated_mib(together) == 4


def test_what_was_there_before_neither_counts_nor_is_given_back():
    older = []

    def keep():
        older.extend(torch.empty(MIB // 16) for _ in range(64))

    assert allocated_mib(keep) == 64 / 16
    seen = {block.data_ptr() for block in older}
    # The profiler does not see the end of these blocks, and takes later ones at their addresses for them.
    older.clear()
    keep()
    assert seen & {block.data_ptr() for block in older}

    def call():
        older.clear()
        return torch.empty(2 * MIB)

    assert allocated_mib(call) == 2


def test_forward_and_backward_are_counted_together_and_what_is_saved_alone():
    x = torch.ones(MIB, requires_grad=True)
    assert saved_mib(lambda x: x.exp().sin(), x) == 1  # the exponential, for both
    # The exponential and its sine, of which a function's result is alive in its backward, a cosine, and a product.
    assert peak_mib(lambda x: x.exp().sin(), x, torch.ones(MIB)) == 4
