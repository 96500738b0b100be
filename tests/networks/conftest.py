"""A small model that tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neurokube.networks import Bundle, write_bundle
from neurokube.networks.unet import UNet, UNetConfig

LABELS = ("membrane", "mitochondria")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Bundle]:
    """Return what writes a small U-Net into a folder, fields of its card as keywords."""
    return _tiny


def _tiny(folder: Path, **fields: Any) -> Bundle:
    """Write a U-Net whose batch norms have seen data, so that folding has something to do."""
    torch.manual_seed(0)
    labels = fields.get("labels", LABELS)
    config = UNetConfig.fitting((10.0, 10.0, 10.0), len(labels), (4, 6, 8))
    network = UNet(config).train()
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(2, 1, 8, 16, 16) + 0.3)
    card = {
        "name": "tiny",
        "architecture": {"kind": "unet", "levels": [level.model_dump() for level in config.levels]},
        "labels": labels,
        "voxel_size": (10.0, 10.0, 10.0),
        "window": (16, 24, 24),
        "multiple": config.factor,
        "halo": (5, 5, 5),
        "licence": "CC-BY-4.0",
        "authors": ["A. Author"],
        "citations": ["Author et al. 2020, doi.org/10.1000/182"],
        "trained_normalization": {"mean": 120.0, "deviation": 30.0},
        "thresholds": {"membrane": 0.4},
        "scores": {"membrane": {"f1": 0.9}, "mitochondria": {"f1": 0.8}},
        "modality": "FIB-SEM",
    }
    return write_bundle(folder, {**card, **fields}, network.state_dict())
