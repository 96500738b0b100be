"""A small model that tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neurokube.networks import Bundle, write_bundle
from neurokube.networks.networks import CONFIGS, network_of

LABELS = ("membrane", "mitochondria")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Bundle]:
    """Return what writes a small network into a folder, a U-Net if no other; fields of its card as keywords."""
    return _tiny


def _tiny(folder: Path, kind: str = "unet", features: tuple[int, ...] = (4, 6, 8), **fields: Any) -> Bundle:
    """Write a network whose batch norms have seen data, so that folding has something to do."""
    torch.manual_seed(0)
    labels = fields.get("labels", LABELS)
    config = CONFIGS[kind].fitting((10.0, 10.0, 10.0), len(labels), features)
    network = network_of(config).train()
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(2, 1, 8, 16, 16) + 0.3)
    card = {
        "name": "tiny",
        "architecture": config.architecture,
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
