"""Runs that may be compared with others of another order of sums."""

import torch

from benchmarks.arc import shards


def steady(trainer):
    """Begin second moments above round-off, so that a step is a smooth function of the gradient.

    The optimiser has no epsilon: a gradient of 1e-12 that is all round-off moves its number by the whole rate, to the
    side that the order of a sum chose. Such are the read's, as streams start out equal.
    """
    for parameter in trainer.parameters.values():
        own = shards.local(parameter.detach())
        moments = {"mean": torch.zeros_like(own), "square": torch.full_like(own, 1e-10)}
        trainer.optimiser.state[parameter] = {"step": 0, **moments}
