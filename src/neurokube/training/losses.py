"""The loss of several sigmoid labels of which each voxel may know only some."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class MaskedLoss(nn.Module):
    """Cross-entropy and soft Dice, over the voxels that are annotated, all labels counting alike.

    `positive_weights` (labels,) weigh the voxels that have a label in cross-entropy.  Dice (Milletari et al.,
    V-Net, 3DV 2016) is taken over the batch, for labels that it shows.
    """

    positive_weights: Tensor

    def __init__(self, positive_weights: Tensor, dice: float) -> None:
        super().__init__()
        self.register_buffer("positive_weights", positive_weights.reshape(-1, 1, 1, 1), persistent=False)
        self.dice = dice

    def forward(self, logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
        """Return the loss of logits (n, labels, z, y, x); `truth` and `known` are 0 or 1, of the same shape."""
        axes = (0, 2, 3, 4)
        entropy = binary_cross_entropy_with_logits(logits, truth, pos_weight=self.positive_weights, reduction="none")
        seen = known.sum(axes)
        loss = ((entropy * known).sum(axes) / seen.clamp(min=1)).sum() / (seen > 0).sum().clamp(min=1)
        if self.dice:
            probability = torch.sigmoid(logits) * known
            overlap = (probability * truth).sum(axes)
            both = (probability + truth * known).sum(axes)
            shown = (truth * known).sum(axes) > 0
            score = (2 * overlap + 1) / (both + 1)
            loss = loss + self.dice * ((1 - score) * shown).sum() / shown.sum().clamp(min=1)
        return loss
