"""The Lightning module of `task: semantics`: a U-Net, its validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks import Box, Grid, Vector, quantized
from ..evaluation.curves import Curve, mean_f1
from ..networks.unet import Network
from ..volumes.volume import Nanometres
from .config import Training
from .learner import Diverged, Learner, halo_of, mean_normalization
from .losses import MaskedLoss
from .pictures import save_picture
from .sampling import Item, Windows
from .truth import Annotated, described

__all__ = ["Diverged", "SemanticsModule"]


class SemanticsModule(Learner):
    """Trains a U-Net on windows."""

    measure = "F1"

    def __init__(
        self,
        settings: Training,
        network: Network,
        labels: Sequence[str],
        windows: Windows,
        validation: Sequence[Annotated],
        positive_weights: Tensor,
        voxel_size: Nanometres,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__(settings, network, windows, voxel_size, learning_rate)
        self.labels = tuple(labels)
        self.loss = MaskedLoss(positive_weights, settings.dice)
        self.windows = windows
        self.annotated = validation
        self.curves = [Curve.empty() for _ in labels]
        self.section = np.zeros((len(self.labels), 0, 0), np.uint8)
        """What was last predicted of the middle section of the first validation volume, (labels, y, x)."""

    def training_step(self, batch: Item, index: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            Diverged: where it is no number.
        """
        image, truth, known = batch
        logits = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        loss: Tensor = self.loss(logits.float(), truth, known)
        self.note_loss(loss, index)
        return loss

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
        network = cast(Network, self.result.eval())
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
                image = volume.seen(inside, pad)
                x = torch.from_numpy(image)[None].to(self.device, memory_format=torch.channels_last_3d)
                probability = torch.sigmoid(network(x)[0].float()).cpu().numpy()
                part = box.relative_to(source.start).slices
                out[(slice(None), *box.slices)] = quantized(probability[(slice(None), *part)])
        network.train(self.training)
        return out

    def figures(self) -> dict[str, float | None]:
        """Return F1, the mean and label by label."""
        if not self.annotated:
            return {"f1": None}
        known = [(n, c) for n, c in zip(self.labels, self.curves, strict=True) if c.known]
        return {"f1": self.score, **{f"f1/{n}": round(float(c.f1[c.best]), 4) for n, c in known}}

    def picture(self, path: Path) -> None:
        """Write the middle section of the first validation volume as a PNG."""
        if not self.annotated:
            return
        volume = self.annotated[0]
        bits = np.arange(len(self.labels), dtype=np.uint32)[:, None, None]
        truth = (volume.positive[volume.middle] >> bits) & 1 == 1
        thresholds = [curve.best if curve.known else 128 for curve in self.curves]
        save_picture(path, volume.image[volume.middle], self.section, truth, thresholds)

    def kept(self) -> dict[str, Any]:
        """Return the curves, from which thresholds follow."""
        return {"curves": [torch.from_numpy(curve.counts) for curve in self.curves]}

    def recall(self, kept: dict[str, Any]) -> None:
        """Put the curves back."""
        self.curves = [Curve(counts.numpy()) for counts in kept["curves"]]

    def card(self) -> dict[str, Any]:
        """Return architecture, labels, window, thresholds and scores."""
        network, window = cast(Network, self.result), self.windows.window
        known = [(label, curve) for label, curve in zip(self.labels, self.curves, strict=True) if curve.known]
        f1 = {label: round(float(curve.f1[curve.best]), 4) for label, curve in known}
        normal = [volume.normalization for volume in self.windows.volumes]
        further = cast(Training, self.schedule).channels
        return {
            "architecture": network.config.architecture,
            **({"channels": 1 + len(further), "inputs": ("image", *further)} if further else {}),
            "labels": self.labels,
            "trained_normalization": mean_normalization(normal),
            "window": window,
            "multiple": network.config.factor,
            "halo": halo_of(network.config.receptive_field, window),
            "thresholds": {label: round(curve.best / 255, 4) for label, curve in known},
            "scores": {"validation": {"f1": f1}} if f1 else {},
        }

    def data(self) -> list[dict[str, Any]]:
        """Return what each volume is, and the share of each label in it."""
        return described(self.windows.volumes, self.labels)
