"""A comparison as `compare` writes it, of invented numbers, for the tests of its readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("00d62c1b", "0d3d703e", "1f85a75f", "25ff71a9", "3c9b0459", "3c9b0459", "67a3c6ac", "d511f180")
ARMS = ("plain", "identity", "sinkhorn", "cayley")


def write_comparison(
    folder: Path, arms: tuple[str, ...] = ARMS, seeds: tuple[int, ...] = (0,), steps: int = 120
) -> dict[str, Any]:
    """Write a comparison whose every run is complete, and return ``comparison.json``."""
    tests = _tests()
    runs = []
    for index, arm in enumerate(arms):
        for seed in seeds:
            inside = f"{arm.replace(':', '-')}/seed-{seed}"
            (folder / inside).mkdir(parents=True)
            generator = np.random.default_rng([index, seed])
            evaluation, metrics = f"{inside}/evaluation-{steps:08d}.json", f"{inside}/metrics.jsonl"
            write_json(folder / evaluation, _evaluation(tests, steps, index, seed, generator))
            lines = map(json.dumps, _metrics(steps, index, generator))
            (folder / metrics).write_text("".join(f"{line}\n" for line in lines))
            runs.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "folder": inside,
                    "steps": steps,
                    "complete": True,
                    "seconds": 40.0 + 20 * index + seed,
                    "peak_memory_mib": 600.0 + 50 * index,
                    "parameters": 107_000 + 500 * index,
                    "mixing_parameters": 500 * index,
                    "segment_gflops": 1.23 + 0.1 * index,
                    "evaluation": evaluation,
                    "metrics": metrics,
                }
            )
    comparison = {
        "preset": "demo",
        "config": {
            "name": "demo",
            "data": {"max_side": 6, "limit": None, "variants": 4, "split": "demos"},
            "model": {"width": 64, "streams": 4},
            "train": {"steps": steps, "batch": 64, "lr": 3e-3, "betas": [0.9, 0.95]},
        },
        "split": "Trained on the demonstrations of all tasks; held out: every test of every task. 59 tasks, "
        "223 training pairs, 69 held out.",
        "data_sha256": "75b0b7818350a0712133f0eace9342f1775e59958187fdb0542fe40acee1dde3",
        "git": "abc1234",
        "packages": {"python": "3.11.2", "torch": "2.13.0"},
        "machine": {"processor": "A processor", "cores": 2, "memory_gib": 24, "system": "Linux x86_64", "gpu": None},
        "copy": {
            "held_out": {"token_accuracy": 0.61, "exact": 0.0, "count": 69},
            "train": {"token_accuracy": 0.63, "exact": 0.01, "count": 223},
        },
        "arms": list(arms),
        "seeds": list(seeds),
        "runs": runs,
    }
    write_json(folder / "comparison.json", comparison)
    return comparison


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _metrics(steps: int, index: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        progress = 1 - np.exp(-3 * step / steps)
        lines.append(
            {
                "kind": "train",
                "step": step,
                "loss": 2.4 - (1.7 + 0.05 * index) * progress + 0.08 * generator.normal(),
                "token_accuracy": float(np.clip(0.1 + 0.7 * progress + 0.02 * generator.normal(), 0, 1)),
                "exact": float(np.clip(0.12 * progress**3 + 0.02 * generator.normal(), 0, 1)),
                "halt_accuracy": 0.9,
                "gradient_norm": float(np.exp(0.4 * generator.normal())),
                "learning_rate": 1e-4,
                "seconds": 0.3,
            }
        )
    gains = [[1.0, 1.0] if index != 2 else [0.9**k, 0.8**k] for k in range(1, 25)] if index else []
    gradient = (
        [{"mean": 2.0, "contrast": 1.5}, {"mean": 1.0, "contrast": 0.0}] if index else [{"mean": 2.0}, {"mean": 1.0}]
    )
    probe = {"kind": "probe", "step": steps, "residual": 1e-7 * index, "contrast_gains": gains, "gradient": gradient}
    return [*lines, probe, {"kind": "evaluation", "step": steps, "held_out": {}, "train": {}}]


def _tests() -> list[dict[str, Any]]:
    generator = np.random.default_rng(7)
    tests = []
    for number, task in enumerate(TASKS):
        shape = generator.integers(2, 7, 2)
        given = generator.integers(0, 10, shape)
        truth = np.where(generator.random(shape) < 0.4, generator.integers(0, 10, shape), given)
        test = int(number > 0 and TASKS[number - 1] == task)
        tests.append({"task": task, "test": test, "input": given.tolist(), "truth": truth.tolist()})
    return tests


def _evaluation(
    tests: list[dict[str, Any]], steps: int, index: int, seed: int, generator: np.random.Generator
) -> dict[str, Any]:
    held_out, train = 0.70 + 0.01 * index + 0.02 * seed, 0.80 + 0.01 * index + 0.02 * seed
    return {
        "step": steps,
        "variants": 8,
        "segments": 4,
        "held_out": {
            "count": 69,
            "tasks": 59,
            "token_accuracy": held_out,
            "token_accuracy_se": 0.02,
            "exact": 0.014,
            "exact_se": 0.0144,
            "pass@1": 0.02,
            "pass@1_se": 0.017,
            "pass@2": 0.03,
            "pass@2_se": None,
            **{f"pass@{k}": 0.03 for k in (5, 10, 100, 1000)},
            "samples": 400,
            "sample_exact": 0.01,
            "sample_token_accuracy": held_out,
            "halt_accuracy": 0.9,
        },
        "pooled": {"evaluations": 3, **{f"pass@{k}": 0.05 for k in (1, 2, 5, 10, 100, 1000)}},
        "train_tasks": {task: [train + 0.01 * number, 0.1] for number, task in enumerate(sorted(set(TASKS)))},
        "train": {"count": 223, "token_accuracy": train, "token_accuracy_se": 0.01, "exact": 0.1, "exact_se": 0.02},
        "predictions": [{**test, **_answers(test, number, index, generator)} for number, test in enumerate(tests)],
    }


def _answers(test: dict[str, Any], number: int, index: int, generator: np.random.Generator) -> dict[str, Any]:
    """One exact answer, one of the wrong shape, one that is no rectangle, and the rest almost right."""
    truth = np.array(test["truth"])
    grid = np.where(generator.random(truth.shape) < 0.3, generator.integers(0, 10, truth.shape), truth)
    if number == index:
        grid = truth
    elif number == index + 1:
        grid = np.pad(grid, ((0, 1), (0, 0)), mode="edge")
    elif number == index + 2:
        return {"canonical": None, "candidates": [], "exact": False, "token_accuracy": 0.0, "rank": None}
    first = {"grid": grid.tolist(), "votes": int(generator.integers(1, 9)), "score": 0.12}
    return {
        "canonical": grid.tolist(),
        "candidates": [first],
        "exact": number == index,
        "token_accuracy": 1.0 if number == index else 0.7,
        "rank": 1 if number == index else None,
    }
