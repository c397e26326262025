"""One run's training: the segments, the loss, the optimisers, and all the state there is between two steps."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arc import buckets, probe, processes, shards
from benchmarks.arc.arms import Arm
from benchmarks.arc.batches import Batches, epoch_shares
from benchmarks.arc.carried import Carried
from benchmarks.arc.checkpoint import TensorFiles
from benchmarks.arc.dataset import ArcData
from benchmarks.arc.losses import correct_tokens, stablemax_cross_entropy
from benchmarks.arc.model import Latents, TinyRecursiveModel
from benchmarks.arc.optimisers import AdamATan2, Average, sign_sgd_
from benchmarks.arc.presets import Preset
from jpmhc import layers

_MEASURES = ("loss", "halt_loss", "token_accuracy", "exact", "halt_accuracy")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class Trainer:
    """A model, its optimisers and the batch it works on.

    Every batch slot holds one sample and the latents carried for it. A step is one segment of every slot; a slot whose
    sample has halted takes the next sample of the stream first. With buckets of grid sides there is a batch and a
    stream for each, and a step works on one of them.

    Parameters
    ----------
    preset : Preset
        Settings.
    arm : Arm
        Residual.
    seed : int
        Of the initial weights, the order of the samples and the exploration. Arms with the same seed see the same
        stream of samples.
    data : ArcData
        Training arrays.
    device : torch.device or str
        Where the model lives.
    shard : bool
        Whether each of several processes keeps its rows of the large matrices alone, see `benchmarks.arc.shards`. The
        run is the same but for round-off, and so are its checkpoints.
    """

    def __init__(
        self,
        preset: Preset,
        arm: Arm,
        seed: int,
        data: ArcData,
        device: torch.device | str = "cpu",
        *,
        shard: bool = False,
    ) -> None:
        self.settings, self.arm, self.device = preset.train, arm, torch.device(device)
        self.model = TinyRecursiveModel(preset.model, arm, seed).to(self.device)
        self.model.checkpoint_calls = self.settings.checkpoint_calls
        if self.settings.compile:
            self._compile(len(preset.data.buckets))
        self.sharded = shard and processes.world() > 1
        if self.sharded:
            shards.shard(self.model)
        # While shards are gathered the model shows the whole weights, which are no parameters of the optimiser.
        self.parameters = dict(self.model.named_parameters())
        self.average = Average(self.model, self.settings.ema)
        mixing = set(layers.mixing_parameters(self.model))
        self.mixing_parameters = sum(p.numel() for p in mixing)
        groups = [
            {"params": [p for p in self.parameters.values() if p not in mixing]},
            # A decay towards raw = 0 would be a force of its own on every mixer.
            {"params": [p for p in self.parameters.values() if p in mixing], "weight_decay": 0.0},
        ]
        self.optimiser = AdamATan2(
            groups, lr=self.settings.lr, betas=self.settings.betas, weight_decay=self.settings.weight_decay
        )
        self.table = torch.zeros(data.num_ids, preset.model.width, device=self.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.step_number = 0
        if processes.world() > self.settings.batch:
            raise ValueError(f"batch: expected one sample a process at least, got {self.settings.batch}")
        self.seed, self.bucketed = seed, bool(preset.data.buckets)
        streams = [
            Batches(part, self.settings.batch, seed, preset.data.translate, self.device)
            for part in buckets.divide(data, preset.data.buckets).values()
        ]
        self.carried = [Carried(self.model, stream, self.settings) for stream in streams]
        # By the side of the square; a whole run's steps are divided so.
        self.shares = epoch_shares(streams)

    @property
    def stream(self) -> Batches:
        """Stream that the last step drew from."""
        return self._carried(self.step_number).stream

    @property
    def slots(self) -> dict[str, Tensor]:
        """Batch that the last step worked on, by name."""
        return self._carried(self.step_number).slots

    def step(self) -> dict[str, float]:
        """Do one optimiser step and return its measures, averaged over all samples of the batch.

        Raises
        ------
        TrainingError
            If the loss or its gradient is not finite; the weights are still those of the last step then.
        """
        carried = self._carried(self.step_number + 1)
        carried.refill()
        slots, batch = carried.slots, self.settings.batch
        puzzle = self.table[slots["ids"]].requires_grad_()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            latents, logits, halt = self.model(Latents(slots["y"], slots["z"]), slots["inputs"], puzzle)
        logits, halt = logits.float(), halt.float()
        share, exact = correct_tokens(logits.detach().argmax(-1), slots["labels"])
        # Sums over this process's samples divided by the whole batch, so that gradients add up over processes.
        token_loss = stablemax_cross_entropy(logits, slots["labels"]).sum() / batch
        halt_loss = F.binary_cross_entropy_with_logits(halt, exact.to(halt.dtype), reduction="sum") / batch
        loss = token_loss + 0.5 * halt_loss
        right = (halt.detach() > 0) == exact
        sums = [
            token_loss.detach(),
            halt_loss.detach().double(),
            *(v.double().sum() / batch for v in (share, exact, right)),
        ]
        measures = dict(zip(_MEASURES, processes.add_up(torch.stack(sums)).tolist(), strict=True))
        if not math.isfinite(measures["loss"] + measures["halt_loss"]):
            raise TrainingError(
                f"arm {self.arm.text}: the loss is {measures['loss'] + 0.5 * measures['halt_loss']} "
                f"at step {self.step_number + 1}"
            )
        self.optimiser.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        shards.sum_gradients(gradients)
        ids, rows = processes.gather(slots["ids"]), processes.gather(puzzle.grad)
        norm = shards.total_norm(gradients)
        if not (math.isfinite(norm.item()) and rows.isfinite().all()):
            raise TrainingError(
                f"arm {self.arm.text}: the gradient is not finite at step {self.step_number + 1} "
                f"(norm {norm.item()}, loss {measures['loss']})"
            )

        self.step_number += 1
        warm = min(1.0, self.step_number / max(1, self.settings.warmup))
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * warm
        self.optimiser.step()
        decay = self.settings.embedding_weight_decay
        sign_sgd_(self.table, ids, rows, self.settings.embedding_lr * warm, decay)
        self.average.update(self.model)
        carried.advance(latents, halt.detach(), self.generator)
        measures |= {"gradient_norm": norm.item(), "learning_rate": self.settings.lr * warm}
        return measures | self._side(carried)

    def probe(self) -> dict[str, Any]:
        """Return what the mixers and the gradient do along the recursion on the first samples of the batch."""
        few = {name: value[: probe.SAMPLES] for name, value in self.slots.items()}
        few |= {name: few[name].float() for name in ("y", "z")}
        with shards.gathered(self.model) if self.sharded else nullcontext():
            found = probe.describe(
                self.model, Latents(few["y"], few["z"]), few["inputs"], self.table[few["ids"]], few["labels"]
            )
        return found | self._side(self._carried(self.step_number))

    def weights(self) -> dict[str, Tensor]:
        """Return what evaluation needs: averaged weights, the model's buffers, the puzzle embeddings.

        They are whole on every process, so all must ask for them.
        """
        average = {name: shards.whole(self.parameters[name], value) for name, value in self.average.weights.items()}
        return {**self.model.state_dict(), **average, "table": self.table}

    def state(self) -> tuple[TensorFiles, dict[str, Any]]:
        """Return everything needed to go on exactly from here, as tensor files and JSON values.

        Nothing depends on the number of processes, or on whether weights are in shards; all processes must ask. What
        is in shards the first one alone gets, as only one writes: whole, and in the host's memory.
        """
        own = {name: shards.local(value) for name, value in self.model.state_dict().items()}
        training = self._collected(own, "model.")
        for carried in self.carried:
            training |= {f"{self._prefix(carried)}{name}": value for name, value in carried.gathered().items()}
        training["generator"] = self.generator.get_state()
        adam = {name: state for name, p in self.parameters.items() if (state := self.optimiser.state.get(p))}
        for moment in ("mean", "square"):
            training |= self._collected({name: state[moment] for name, state in adam.items()}, f"{moment}.")
        adam_steps = {name: state["step"] for name, state in adam.items()}
        if self.bucketed:
            streams = {"streams": {str(carried.side): carried.stream.state_dict() for carried in self.carried}}
        else:
            streams = {"stream": self.stream.state_dict()}
        json_state = {"step": self.step_number, "adam_steps": adam_steps, **streams}
        weights = {**self._collected({**own, **self.average.weights}), "table": self.table}
        return {"weights": weights, "training": training}, json_state

    def load_state(self, files: TensorFiles, state: dict[str, Any]) -> None:
        """Go to what :meth:`state` returned."""
        training, weights = files["training"], files["weights"]
        own = {name.removeprefix("model."): value for name, value in training.items() if name.startswith("model.")}
        self.model.load_state_dict({name: self._part(name, value) for name, value in own.items()})
        for carried in self.carried:
            carried.scatter({name: training[f"{self._prefix(carried)}{name}"] for name in carried.slots})
            carried.stream.load_state_dict(state["streams"][str(carried.side)] if self.bucketed else state["stream"])
        self.generator.set_state(training["generator"])
        self.optimiser.state.clear()
        for name, parameter in self.parameters.items():
            if name in state["adam_steps"]:
                self.optimiser.state[parameter] = {
                    "step": state["adam_steps"][name],
                    "mean": self._own(name, training[f"mean.{name}"]),
                    "square": self._own(name, training[f"square.{name}"]),
                }
        self.average.weights = {name: self._own(name, weights[name]) for name in self.average.weights}
        self.table = weights["table"].to(self.device, copy=True)
        self.step_number = state["step"]

    def _collected(self, values: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Return values by the names of parameters as a checkpoint has them, those in shards on the first process."""
        found = {f"{prefix}{name}": shards.on_first(self.parameters.get(name), v) for name, v in values.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _part(self, name: str, value: Tensor) -> Tensor:
        """Return a whole tensor as the parameter of that name is held."""
        return shards.part(self.parameters[name], value) if name in self.parameters else value

    def _own(self, name: str, value: Tensor) -> Tensor:
        """Return a copy of this process's part of a whole tensor."""
        return shards.local(self._part(name, value)).to(self.device, copy=True)

    def _compile(self, sides: int) -> None:
        # torch keeps eight graphs of one piece of code, over all models of a process, and runs the rest uncompiled
        # without a word: the later arms of a comparison.
        torch.compiler.reset()
        if sides == 0:
            self.model.net.compile()
            return
        # The few lengths of sequence get graphs of their own, each with and without gradient.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * sides)
        self.model.net.compile(dynamic=False)

    def _carried(self, step: int) -> Carried:
        """Return the batch that a step works on."""
        return self.carried[buckets.pick(list(self.shares.values()), self.seed, step)]

    def _side(self, carried: Carried) -> dict[str, int]:
        """Return what measures of this batch say of its bucket."""
        return {"side": carried.side} if self.bucketed else {}

    def _prefix(self, carried: Carried) -> str:
        """Return what the names of a batch's slots begin with in a checkpoint."""
        return f"slots.{carried.side}." if self.bucketed else "slots."
