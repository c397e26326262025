"""The sizes of the rotation tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.rotations import trajectories
from benchmarks.rotations.claims import PUBLISHED
from benchmarks.rotations.operators import Mapping, householder
from benchmarks.rotations.sequences import NextVector
from benchmarks.trainer import Problem, Schedule
from benchmarks.transformer import TransformerConfig

_DATA_SEED = 42


@dataclass(frozen=True)
class Trajectories:
    """One task of trajectories: vectors of size ``dim``, ``length`` steps, training and held-out sequences."""

    dim: int
    length: int
    train: int
    held_out: int
    model: TransformerConfig
    schedule: Schedule
    angle: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A size of the experiment.

    Attributes
    ----------
    gyroscope, stability, near_pi, near_pi_planes : Trajectories
        The four tasks of sequences.
    reflect_dim, reflect_hidden, reflect_schedule : int, int, Schedule
        The published reflection: vectors, network of the raw numbers, optimisation.
    householder_width, householder_schedule : int, Schedule
        The reflection of determinant -1 on four streams.
    """

    gyroscope: Trajectories
    stability: Trajectories
    near_pi: Trajectories
    near_pi_planes: Trajectories
    reflect_dim: int
    reflect_hidden: int
    reflect_schedule: Schedule
    householder_width: int
    householder_schedule: Schedule
    angles: tuple[float, float] = (0.1, 2.5)
    noise: float = 1e-3


def _full() -> Preset:
    # arXiv 2605.06729: 9 blocks of 128 for GPT, 7 for JPmHC with four streams of 128; 1.8 M parameters.
    model = TransformerConfig(width=128, heads=4, blocks=7, length=256, wiring="split", plain_blocks=9)
    schedule = Schedule(steps=2000, batch=64)
    near = Trajectories(64, 127, 1000, 500, model, schedule)
    return Preset(
        gyroscope=Trajectories(16, 255, 9000, 1000, model, schedule),
        stability=Trajectories(64, 127, 900, 100, model, schedule),
        near_pi=replace(near, angle=3.10),
        near_pi_planes=replace(near, angle=3.14),
        reflect_dim=64,
        reflect_hidden=128,
        reflect_schedule=Schedule(2000, 32, final_lr=1e-3, warmup=1, weight_decay=0.01, clip=float("inf")),
        householder_width=16,
        householder_schedule=Schedule(2000, 32, lr=1e-2, final_lr=1e-4, warmup=1, weight_decay=0.0),
    )


def _small() -> Preset:
    # Two blocks where the rotation must be read off the sequence, one where it is always the same.
    deep = TransformerConfig(width=32, heads=2, blocks=2, length=16, wiring="split", plain_blocks=3)
    flat = TransformerConfig(width=32, heads=2, blocks=1, length=8, wiring="split", plain_blocks=2)
    schedule = Schedule(steps=250, batch=16, lr=5e-3, final_lr=1e-4, warmup=20)
    near = Trajectories(16, 8, 1000, 256, flat, schedule)
    return Preset(
        gyroscope=Trajectories(4, 16, 4000, 256, deep, schedule),
        stability=Trajectories(16, 8, 900, 256, flat, schedule),
        near_pi=replace(near, angle=3.10),
        near_pi_planes=replace(near, angle=3.14),
        reflect_dim=16,
        reflect_hidden=64,
        reflect_schedule=Schedule(600, 32, lr=3e-3, final_lr=3e-3, warmup=1, weight_decay=0.01, clip=float("inf")),
        householder_width=4,
        householder_schedule=Schedule(600, 16, lr=3e-2, final_lr=1e-4, warmup=1, weight_decay=0.0),
    )


def _quick() -> Preset:
    small = _small()

    def less(task: Trajectories) -> Trajectories:
        model = replace(small.near_pi.model, width=8, length=4)
        schedule = replace(task.schedule, steps=20, batch=4, warmup=4)
        return replace(task, dim=4, length=4, train=32, held_out=8, model=model, schedule=schedule)

    return replace(
        small,
        gyroscope=less(small.gyroscope),
        stability=less(small.stability),
        near_pi=less(small.near_pi),
        near_pi_planes=less(small.near_pi_planes),
        reflect_dim=4,
        reflect_hidden=8,
        reflect_schedule=replace(small.reflect_schedule, steps=20),
        householder_schedule=replace(small.householder_schedule, steps=20),
    )


PRESETS = {"quick": _quick, "small": _small, "full": _full}


def problems(name: str) -> list[Problem]:
    """Return the six tasks of a preset, with their data.

    The data are the same for every seed and arm, as published.

    Raises
    ------
    ValueError
        For an unknown preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: unknown name {name!r}, expected one of {', '.join(PRESETS)}")
    preset = PRESETS[name]()
    found = [
        _gyroscope(preset),
        _stability(preset),
        _constant(
            "near-pi", preset.near_pi, trajectories.plane_rotation(preset.near_pi.dim, preset.near_pi.angle, 0, 1)
        ),
        _constant(
            "near-pi-planes",
            preset.near_pi_planes,
            trajectories.planes_rotation(preset.near_pi_planes.dim, preset.near_pi_planes.angle),
        ),
        _reflection(preset),
        _householder(preset),
    ]
    for problem in found:
        problem.facts["published"] = PUBLISHED[problem.name]
    return found


def _generator(offset: int) -> torch.Generator:
    return torch.Generator().manual_seed(_DATA_SEED + offset)


def _gyroscope(preset: Preset) -> Problem:
    task = preset.gyroscope
    train, held_out = (
        trajectories.gyroscope(count, task.length, task.dim, preset.angles, _generator(offset))
        for count, offset in ((task.train, 0), (task.held_out, 1000))
    )
    floor = trajectories.gyroscope_floor(task.dim, task.length, preset.angles)
    return NextVector("gyroscope", task.model, task.schedule, train, held_out, {"floor": floor})


def _stability(preset: Preset) -> Problem:
    task = preset.stability
    train, held_out = (
        trajectories.echo(count, task.length, task.dim, preset.noise, _generator(offset))
        for count, offset in ((task.train, 0), (task.held_out, 1000))
    )
    floor = trajectories.echo_floor(task.length, preset.noise)
    return NextVector("stability", task.model, task.schedule, train, held_out, {"floor": floor})


def _constant(name: str, task: Trajectories, rotation: torch.Tensor) -> Problem:
    train, held_out = (
        trajectories.constant(count, task.length, rotation, _generator(offset))
        for count, offset in ((task.train, 0), (task.held_out, 1000))
    )
    return NextVector(name, task.model, task.schedule, train, held_out, {"floor": 0.0})


def _reflection(preset: Preset) -> Problem:
    target = -torch.eye(preset.reflect_dim, dtype=torch.float64)
    return Mapping("reflection", target, 1, preset.reflect_hidden, preset.reflect_schedule)


def _householder(preset: Preset) -> Problem:
    target = householder(4, _DATA_SEED)
    return Mapping("householder", target, preset.householder_width, None, preset.householder_schedule)
