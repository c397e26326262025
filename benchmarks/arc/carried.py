"""The batch that training carries from step to step: samples that stay until they halt, with their latents."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.arc import processes
from benchmarks.arc.batches import Batches
from benchmarks.arc.model import Latents, TinyRecursiveModel
from benchmarks.arc.presets import TrainConfig


class Carried:
    """One batch and the stream that fills it.

    Every slot holds one sample and the latents carried for it. Of several processes each holds its part of the slots.

    Parameters
    ----------
    model : TinyRecursiveModel
        Whose latents they are.
    stream : Batches
        Where samples come from; its side is that of the batch.
    settings : TrainConfig
        Size of the whole batch, number of segments, dtype of the latents.
    """

    def __init__(self, model: TinyRecursiveModel, stream: Batches, settings: TrainConfig) -> None:
        self.model, self.stream, self.settings, self.device = model, stream, settings, stream.device
        self.side = stream.data.side
        self.mine = processes.share(settings.batch)
        size, length = self.mine.stop - self.mine.start, self.side**2
        latents = model.initial(size, settings.stream_dtype, self.side)
        self.slots = {
            "inputs": torch.zeros(size, length, dtype=torch.uint8, device=self.device),
            "labels": torch.zeros(size, length, dtype=torch.int64, device=self.device),
            "ids": torch.zeros(size, dtype=torch.int64, device=self.device),
            "y": latents.y,
            "z": latents.z,
            "segments": torch.zeros(size, dtype=torch.int64, device=self.device),
            "halted": torch.ones(size, dtype=torch.bool, device=self.device),
        }

    def refill(self) -> None:
        """Give the slots whose samples have halted the next samples of the stream."""
        free = self.slots["halted"].nonzero().squeeze(-1)
        # Free slots of all processes, in their order, take the samples of one stream.
        counts = processes.gather(torch.tensor([len(free)], device=self.device)).tolist()
        if sum(counts) == 0:
            return
        before = sum(counts[: processes.rank()])
        samples = self.stream.next(sum(counts), keep=slice(before, before + len(free)))
        if len(free) == 0:
            return
        for name in ("inputs", "labels", "ids"):
            self.slots[name][free] = samples[name].to(self.slots[name].dtype)
        fresh = self.model.initial(len(free), self.settings.stream_dtype, self.side)
        self.slots["y"][free], self.slots["z"][free] = fresh.y, fresh.z
        self.slots["segments"][free] = 0

    def advance(self, latents: Latents, halt: Tensor, generator: torch.Generator) -> None:
        """Take over the latents after a segment, and say which samples have halted.

        Parameters
        ----------
        latents : Latents
        halt : Tensor, shape (size of this process's part,)
            Halting logits.
        generator : torch.Generator
            Of the exploration; drawn from for the whole batch, so that it is the same in all processes.
        """
        slots, most, batch = self.slots, self.settings.segments, self.settings.batch
        slots["y"], slots["z"] = (latent.to(slots["y"].dtype) for latent in latents)
        slots["segments"] += 1
        explore = torch.rand(batch, generator=generator) < self.settings.exploration
        least = torch.where(explore, torch.randint(min(2, most), most + 1, (batch,), generator=generator), 1)
        least = least[self.mine].to(self.device)
        slots["halted"] = (slots["segments"] >= most) | ((halt > 0) & (slots["segments"] >= least))

    def gathered(self) -> dict[str, Tensor]:
        """Return the slots of all processes, so that a checkpoint does not depend on their number."""
        return {name: processes.gather(value) for name, value in self.slots.items()}

    def scatter(self, slots: dict[str, Tensor]) -> None:
        """Take this process's part of what `gathered` returned."""
        self.slots = {name: slots[name][self.mine].to(self.device, copy=True) for name in self.slots}
