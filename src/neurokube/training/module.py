"""The Lightning module: one network, its moving average, its validation."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..blocks import Box, Grid, Vector
from ..errors import NeuroKubeError
from ..evaluation.curves import Curve, mean_f1, quantized
from ..networks.unet import Network
from .config import Training
from .losses import MaskedLoss
from .sampling import Item, Windows
from .truth import Annotated

_WARM_UP = 0.1


class Diverged(NeuroKubeError):
    """The loss or the weights are no numbers any more: where that was noticed."""


class SemanticsModule(LightningModule):
    """Trains a network on windows; each epoch is one interval between checkpoints.

    An epoch's windows follow from its number, so to go on from the checkpoint at its start is exact.
    """

    def __init__(
        self,
        settings: Training,
        network: Network,
        labels: Sequence[str],
        windows: Windows,
        validation: Sequence[Annotated],
        positive_weights: Tensor,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.learning_rate = settings.learning_rate or learning_rate
        self.labels = tuple(labels)
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = AveragedModel(
            network,
            multi_avg_fn=_averaging(settings.average),
            use_buffers=True,
        ).requires_grad_(False)
        self.loss = MaskedLoss(positive_weights, settings.dice)
        self.windows = windows
        self.annotated = validation
        self.curves = [Curve.empty() for _ in labels]
        self.section = np.zeros((len(self.labels), 0, 0), np.uint8)
        """What was last predicted of the middle section of the first validation volume, (labels, y, x)."""
        self.score = float("nan")
        self.last_loss = float("nan")

    def train_dataloader(self) -> DataLoader[Item]:
        """Return the windows of the epoch at hand; called anew for each."""
        settings = self.settings
        self.windows.first = self.current_epoch * settings.interval * settings.batch * self.trainer.world_size
        steps = min(settings.interval, settings.steps - self.current_epoch * settings.interval)
        self.windows.count = max(0, steps) * settings.batch * self.trainer.world_size
        return DataLoader(self.windows, settings.batch, shuffle=False, num_workers=settings.loaders)

    def configure_optimizers(self) -> Any:
        """AdamW on one cycle of the learning rate (Smith and Topin, 2019)."""
        settings = self.settings
        optimizer = torch.optim.AdamW(self.network.parameters(), self.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=settings.steps + 1,
            pct_start=max(_WARM_UP, 2 / (settings.steps + 1)),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Item, index: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            Diverged: where it is no number.
        """
        image, truth, known = batch
        logits = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        loss: Tensor = self.loss(logits.float(), truth, known)
        self.last_loss = float(loss.detach())
        if self.trainer.is_global_zero and not np.isfinite(self.last_loss):
            together = self.settings.batch * self.trainer.world_size
            first = self.windows.first + index * together
            raise Diverged(
                f"the loss is {self.last_loss} at step {self.global_step} (windows {first} to {first + together - 1})"
            )
        self.log("loss", loss.detach(), prog_bar=False)
        return loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Follow the weights with their average, which forgets slowly but starts at once."""
        if self.settings.average:
            # at the start an average over 100 steps would still be the untrained network
            step = self.global_step
            decay = min(self.settings.average, (1 + step) / (10 + step))
            self.average.multi_avg_fn = _averaging(decay)
            self.average.update_parameters(self.network)

    @property
    def result(self) -> Network:
        """The network to keep: the average, where one is taken."""
        return cast(Network, self.average.module if self.settings.average else self.network)

    def check_weights(self) -> None:
        """Make sure that what is to be kept can be used: the last step may have spoilt it after its loss was taken.

        Raises:
            Diverged: where a weight is no number.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values()):
            raise Diverged(f"the weights are no numbers after step {self.global_step}")

    def validate_now(self) -> float | None:
        """Predict the validation volumes, keep the curves, return the mean over labels of the best F1."""
        if not self.annotated:
            return None
        curves = [Curve.empty() for _ in self.labels]
        for volume in self.annotated:
            predicted = self.predict(volume)
            if volume is self.annotated[0]:
                self.section = predicted[:, volume.middle].copy()
            for k in range(len(self.labels)):
                bit = np.uint32(1 << k)
                curves[k] = curves[k].plus(predicted[k], volume.positive & bit, volume.known & bit)
        self.curves = curves
        self.score = mean_f1(curves)
        return self.score

    def predict(self, volume: Annotated) -> NDArray[np.uint8]:
        """Return probabilities (labels, z, y, x) as 0 to 255, from tiles side by side with some context."""
        network = self.result.eval()
        factor = network.config.factor
        tile = tuple(w * 2 if axis else w for axis, w in enumerate(self.windows.window))
        halo = tuple(min(f, n // 4) // m * m for f, n, m in zip((8, 24, 24), tile, factor, strict=True))
        grid = Grid(volume.shape, cast(Vector, tile))
        out = np.zeros((len(self.labels), *volume.shape), np.uint8)
        with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
            for index in range(len(grid)):
                box = grid.box(index)
                source = box.grow(halo)
                # whole multiples of the pooling
                extent = tuple(-(-n // m) * m for n, m in zip(source.shape, factor, strict=True))
                inside = source.clip(Box.of(volume.shape))
                pad = [
                    (a - s, s + n - b)
                    for a, b, s, n in zip(inside.start, inside.stop, source.start, extent, strict=True)
                ]
                image = np.pad(volume.normalization.apply(volume.image[inside.slices]), pad, mode="reflect")
                x = torch.from_numpy(image)[None, None].to(self.device, memory_format=torch.channels_last_3d)
                probability = torch.sigmoid(network(x)[0].float()).cpu().numpy()
                part = box.relative_to(source.start).slices
                out[(slice(None), *box.slices)] = quantized(probability[(slice(None), *part)])
        network.train(self.training)
        return out


def _averaging(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
