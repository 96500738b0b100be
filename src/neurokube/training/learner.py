"""What every training has in common: a network, its moving average, intervals between checkpoints."""

import signal
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..blocks import Vector
from ..errors import NeuroKubeError
from ..machine import cores
from ..networks import Normalization
from ..volumes.volume import Nanometres
from .config import Schedule
from .sampling import Ahead, Numbered

_WARM_UP = 0.1
_AHEAD = 4
"""Threads that prepare windows for a card: the smaller of our networks learn from 3 in the time that one takes."""


class Diverged(NeuroKubeError):
    """The loss or the weights are no numbers any more: where that was noticed."""

    remedy: str | None = None
    """What to do about it, where that is not a lower learning rate."""


class Learner(LightningModule):
    """Trains `network` on numbered windows; each epoch is one interval between validations, or what is left of it.

    An epoch's windows follow from the step at which it begins, so to go on from a checkpoint is exact.
    """

    measure = ""
    """What the score is called where a person sees it."""

    def __init__(
        self, settings: Schedule, network: nn.Module, windows: Numbered, voxel_size: Nanometres, learning_rate: float
    ) -> None:
        super().__init__()
        self.schedule = settings
        self.voxel_size = voxel_size
        self.learning_rate = settings.learning_rate or learning_rate
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = AveragedModel(
            network,
            multi_avg_fn=_averaging(settings.average),
            use_buffers=True,
        ).requires_grad_(False)
        self.numbered = windows
        self.score = float("nan")
        """What the last validation found; larger is better."""
        self.last_loss = float("nan")

    @property
    def step(self) -> int:
        """How many windows' batches were learned from; Lightning counts each optimizer's steps."""
        return self.global_step // max(1, len(self.trainer.optimizers))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the windows from here to the next validation; called anew for each epoch."""
        settings, step = self.schedule, self.step
        together = settings.batch * self.trainer.world_size
        self.numbered.first = step * together
        steps = min(settings.interval - step % settings.interval, settings.steps - step)
        # where nothing is left to learn from Lightning must not skip the rest: the last validation may be owed
        self.numbered.count = max(1, steps) * together
        # a fork of a process with threads, as PyTorch and tensorstore start, can crash
        context = "spawn" if settings.loaders else None
        graphics = self.trainer.strategy.root_device.type == "cuda"
        ahead = graphics and not settings.loaders
        return DataLoader(
            Ahead(self.numbered, self.trainer.world_size, min(_AHEAD, cores())) if ahead else self.numbered,
            settings.batch,
            shuffle=False,
            num_workers=settings.loaders,
            multiprocessing_context=context,
            worker_init_fn=_deaf,
        )

    def configure_optimizers(self) -> Any:
        """AdamW on one cycle of the learning rate (Smith and Topin, 2019)."""
        settings = self.schedule
        optimizer = torch.optim.AdamW(self.network.parameters(), self.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=settings.steps + 1,
            pct_start=max(_WARM_UP, 2 / (settings.steps + 1)),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def note_loss(self, loss: Tensor, index: int) -> None:
        """Remember and log the loss of a batch.

        Raises:
            Diverged: where it is no number.
        """
        self.last_loss = float(loss.detach())
        if self.trainer.is_global_zero and not np.isfinite(self.last_loss):
            together = self.schedule.batch * self.trainer.world_size
            first = self.numbered.first + index * together
            raise Diverged(
                f"the loss is {self.last_loss} at step {self.step} (windows {first} to {first + together - 1})"
            )
        self.log("loss", loss.detach(), prog_bar=False)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Follow the weights with their average, which forgets slowly but starts at once."""
        if self.schedule.average:
            # at the start an average over 100 steps would still be the untrained network
            step = self.step
            decay = min(self.schedule.average, (1 + step) / (10 + step))
            self.average.multi_avg_fn = _averaging(decay)
            self.average.update_parameters(self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what an interval has gathered so far."""
        checkpoint["interval"] = {"loss": self.last_loss, **self.gathered()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put it back."""
        if "interval" in checkpoint:
            self.last_loss = checkpoint["interval"]["loss"]
            self.regather(checkpoint["interval"])

    def gathered(self) -> dict[str, Any]:
        """Return what else an interval has gathered so far, as plain values and tensors."""
        return {}

    def regather(self, state: dict[str, Any]) -> None:
        """Put back what `gathered` returned."""

    @property
    def result(self) -> nn.Module:
        """The network to keep: the average, where one is taken."""
        return self.average.module if self.schedule.average else self.network

    def check_weights(self) -> None:
        """Make sure that what is to be kept can be used: the last step may have spoilt it after its loss was taken.

        Raises:
            Diverged: where a weight is no number.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values()):
            raise Diverged(f"the weights are no numbers after step {self.step}")

    @abstractmethod
    def validate_now(self) -> float | None:
        """Validate, and return by what the best step is chosen, the larger the better; None: the last is the best."""

    @abstractmethod
    def figures(self) -> dict[str, float | None]:
        """Return what to write down beside the loss after a validation."""

    def alarm(self) -> Diverged | None:
        """Return what makes this interval look spoilt, for the whole training where the next one looks so too."""
        return None

    @abstractmethod
    def picture(self, path: Path) -> None:
        """Write what the network makes of an image as a PNG, where there is something to show."""

    def kept(self) -> dict[str, Any]:
        """Return what else is kept of the best step, as tensors."""
        return {}

    def recall(self, kept: dict[str, Any]) -> None:
        """Put back what was kept of the best step."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return the fields of the bundle's card that are of this kind of network."""

    @abstractmethod
    def data(self) -> list[dict[str, Any]]:
        """Return what was learned from, as plain values."""


def halo_of(receptive_field: Vector, window: Vector) -> Vector:
    """Return the faces of a window to leave to its neighbours: a quarter of the receptive field, but not too much.

    What a voxel depends on falls off quickly from it (Luo et al., NeurIPS 2016: the effective receptive field):
    the theoretical field, several times as wide, would leave little of a window.
    """
    z, y, x = (min(-(-r // 4), (w - 1) // 2) for r, w in zip(receptive_field, window, strict=True))
    return z, y, x


def mean_normalization(normal: Sequence[Normalization]) -> Normalization:
    """Return the mean of what volumes were normalized by."""
    mean, deviation = (float(np.mean([getattr(n, field) for n in normal])) for field in ("mean", "deviation"))
    return Normalization(mean=round(mean, 3), deviation=round(deviation, 3))


def _deaf(number: int) -> None:
    """Let a process that prepares windows work on at Ctrl-C, which reaches it too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _averaging(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
