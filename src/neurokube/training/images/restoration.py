"""Lightning modules of networks that make images: what they share, and the self-supervised one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ...networks import Normalization
from ...networks.generator import Generator
from ...volumes.volume import Nanometres
from ..config import ImageTraining
from ..learner import Learner
from ..sampling import Numbered
from .showcase import Showcase, generator_card


class ImageLearner(Learner):
    """Trains a generator; a showcase says how good it is."""

    measure = "PSNR"

    def __init__(
        self,
        settings: ImageTraining,
        network: Generator,
        windows: Numbered,
        showcase: Showcase,
        normal: Sequence[Normalization],
        voxel_size: Nanometres,
        learning_rate: float,
    ) -> None:
        super().__init__(settings, network, windows, voxel_size, learning_rate)
        self.showcase, self._normal = showcase, normal

    def predict(self, image: Tensor) -> Tensor:
        """Return what the network to keep makes of normalized images (n, 1, z, y, x), on the processor."""
        network = self.result.eval()
        with torch.inference_mode(), self.trainer.precision_plugin.forward_context():
            made = network(image.to(self.device, memory_format=torch.channels_last_3d)).float().cpu()
        network.train(self.training)
        return cast(Tensor, made)

    def validate_now(self) -> float | None:
        """Return the showcase's measure."""
        found = self.showcase.measure(self.predict)
        self.score = float("nan") if found is None else found
        return found

    def figures(self) -> dict[str, float | None]:
        """Return what the showcase measured."""
        return self.showcase.figures

    def picture(self, path: Path) -> None:
        """Write the showcase's picture."""
        self.showcase.picture(path, self.predict)

    def kept(self) -> dict[str, Any]:
        """Return what was measured at the best step."""
        return {"figures": self.showcase.figures}

    def recall(self, kept: dict[str, Any]) -> None:
        """Put back what was measured at the best step."""
        self.showcase.figures = kept["figures"]

    def card(self) -> dict[str, Any]:
        """Return what the card of a generator says."""
        return generator_card(cast(Generator, self.result), self._normal, self.showcase.card())

    def data(self) -> list[dict[str, Any]]:
        """Return what was learned from, as plain values."""
        return self.showcase.data()


class Restorer(ImageLearner):
    """Learns to restore the sections that were taken out of planes, by the mean squared difference.

    The volume's own high-resolution planes are the truth (Weigert et al., "Content-aware image restoration",
    Nature Methods 2018; Zhao et al., "SMORE", IEEE TMI 2021).
    """

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of planes: thick sections, and thin ones to make of them.

        Raises:
            Diverged: where it is no number.
        """
        thick, thin = batch
        made = self.network(thick.contiguous(memory_format=torch.channels_last_3d))[:, :, : thin.shape[2]]
        loss = mse_loss(made.float(), thin)
        self.note_loss(loss, index)
        return loss
