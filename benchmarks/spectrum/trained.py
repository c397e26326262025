"""A Tiny Recursive Model that was trained on ARC-AGI-1, and what theory says of its Jacobian from its mixers alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.arc.arms import Arm
from benchmarks.arc.model import Latents, TinyRecursiveModel
from benchmarks.arc.presets import preset
from benchmarks.arc.run import build_data
from benchmarks.arc.training import Trainer
from benchmarks.spectrum.timing import timed
from jpmhc import spectrum

ARMS = ("identity", "sinkhorn", "cayley")


class Section(NamedTuple):
    """The last H cycle of a trained model on one sample: every net call, the latent z passing through all of them."""

    model: TinyRecursiveModel
    batch: tuple[Latents, Tensor, Tensor]
    start: tuple[str, int]
    stop: tuple[str, int]


def train(arm: str, name: str, steps: int, say: Callable[[str], None] = lambda text: None) -> Section:
    """Train an arm for some steps with the optimisers and data of the ARC benchmark.

    Parameters
    ----------
    arm, name : str
        Arm and preset.
    steps : int
        Optimiser steps.
    say : callable
        Gets a line when done.
    """
    settings = preset(name)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, steps=steps))
    trainer = Trainer(settings, Arm.parse(arm), 0, build_data(settings))
    measures: dict[str, float] = {}
    for _ in range(steps):
        measures = trainer.step()
    if measures:
        accuracy = f"{100 * measures['token_accuracy']:.1f} %"
        say(f"{arm}: {steps} steps, loss {measures['loss']:.3f}, token accuracy {accuracy}")
    sample = trainer.stream.next(1)
    batch = (trainer.model.initial(1), sample["inputs"], trainer.table[sample["ids"]])
    calls = settings.model.h_cycles * (settings.model.l_cycles + 1)
    last = 2 * settings.model.blocks - 1
    start = ("net.sublayers.0", calls - settings.model.l_cycles - 1)
    return Section(trainer.model, batch, start, (f"net.sublayers.{last}", calls - 1))


def predict(section: Section) -> tuple[spectrum.PredictedLaw, spectrum.Report]:
    """Predict the section's law from token means: mixers, gates, branch energies, and the norms after each sublayer.

    A norm divides every stream by its length; the mean of that factor scales the rows of the mixer and the write. That
    it also projects on the sphere, and that coefficients depend on the token, is left out.
    """
    model, batch = section.model, section.batch
    lengths: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        lengths.append(output.detach().double().square().mean(-1).rsqrt().reshape(-1, output.shape[-2]).mean(0))

    handles = [sublayer.register_forward_hook(note) for sublayer in model.net.sublayers]
    try:
        report = spectrum.inspect(model, batch, energy_probes=8)
    finally:
        for handle in handles:
            handle.remove()
    count = (section.stop[1] - section.start[1] + 1) * len(model.net.sublayers)
    chain = report.chain(slice(-count, None))
    factors = torch.stack(lengths[-count:])
    factors[-1] = 1  # the section ends before the last norm
    return (
        spectrum.predict(
            factors.unsqueeze(-1) * chain["mixers"], chain["read"], factors * chain["write"], chain["energy"]
        ),
        report,
    )


def measure(section: Section) -> spectrum.MeasuredLaw:
    """Measure the section's Jacobian over all tokens of the sample.

    By the dense Jacobian, a minute at 7424 x 7424: the values span six decades, of which a quadrature from 64 Lanczos
    steps sees the upper one.
    """
    return spectrum.measure(section.model, section.batch, start=section.start, stop=section.stop)


def run(quick: bool) -> dict[str, Any]:
    """Compare prediction and measurement, before and after training.

    Parameters
    ----------
    quick : bool
        The smallest preset for 20 steps.

    Returns
    -------
    dict
        JSON-able: ``rows`` of arm, steps, size of the Jacobian, Kolmogorov distance, mean error of log s, errors of the
        quantiles, measured and predicted mean of log s, seconds of both.
    """
    name, steps = ("smoke", 20) if quick else ("demo", 200)
    rows = []
    for arm in ARMS:
        for trained in (0, steps):
            section = train(arm, name, trained)
            (law, _), predicting = timed(lambda section=section: predict(section))
            measured, measuring = timed(lambda section=section: measure(section))
            found = spectrum.compare(law, measured)
            rows.append(
                {
                    "arm": arm,
                    "steps": trained,
                    "size": measured.shape[0],
                    "layers": law.model.layers,
                    "kolmogorov": found.kolmogorov,
                    "mean_log_error": found.wasserstein_log,
                    **{f"q{100 * row['level']:g}_percent": 100 * row["error"] for row in found.table()},
                    "predicted_mean_log": float(law.mean_log),
                    "measured_mean_log": float(measured.mean_log),
                    "predict_s": predicting,
                    "measure_s": measuring,
                }
            )
    return {"preset": name, "rows": rows}
