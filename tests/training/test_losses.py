import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from neurokube.training.losses import MaskedLoss

SHAPE = (2, 3, 2, 4, 4)


def sample(seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(SHAPE, generator=random).requires_grad_()
    truth = (torch.rand(SHAPE, generator=random) < 0.3).float()
    known = (torch.rand(SHAPE, generator=random) < 0.6).float()
    return logits, truth, known


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_unlabelled_voxels_have_no_influence(dice):
    loss = MaskedLoss(torch.tensor([1.0, 2.0, 3.0]), dice)
    logits, truth, known = sample()
    value = loss(logits, truth, known)
    value.backward()
    assert (logits.grad[known == 0] == 0).all()
    assert (logits.grad[known == 1] != 0).any()
    wrong = torch.where(known == 1, truth, 1 - truth)
    moved = torch.where(known == 1, logits.detach(), 100 * torch.ones(SHAPE))
    assert loss(moved, wrong, known) == value.detach()


def test_a_label_that_nobody_annotated_does_not_count():
    logits, truth, known = sample()
    known[:, 1] = 0
    others = [0, 2]
    alone = MaskedLoss(torch.ones(2), 1.0)(logits[:, others], truth[:, others], known[:, others])
    assert torch.allclose(MaskedLoss(torch.ones(3), 1.0)(logits, truth, known), alone)
    assert MaskedLoss(torch.ones(3), 1.0)(logits, truth, torch.zeros(SHAPE)) == 0


def test_cross_entropy_counts_labels_alike_and_weighs_positive_voxels():
    logits, truth, known = sample()
    weights = torch.tensor([1.0, 2.0, 3.0])
    parts = []
    for k, weight in enumerate(weights):
        seen = known[:, k] == 1
        parts.append(binary_cross_entropy_with_logits(logits[:, k][seen], truth[:, k][seen], pos_weight=weight))
    assert torch.allclose(MaskedLoss(weights, 0.0)(logits, truth, known), torch.stack(parts).mean())


def test_dice_vanishes_where_all_is_right():
    _, truth, known = sample()
    right = 60 * (2 * truth - 1)
    assert MaskedLoss(torch.ones(3), 1.0)(right, truth, known) < 1e-6
    assert MaskedLoss(torch.ones(3), 1.0)(-right, truth, known) > 1
