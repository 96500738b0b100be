"""The models that come with the program."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from neurokube.networks import SHIPPED, load_bundle
from neurokube.training import parse_training

ROOT = Path(__file__).parents[2]
NAMES = sorted(folder.name for folder in SHIPPED.iterdir())
MOST = 5_000_000


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_is_small_and_says_where_it_comes_from(name):
    bundle = load_bundle(name)
    card = bundle.card
    assert card.name == name and sum(file.stat().st_size for file in bundle.folder.iterdir()) < MOST
    assert card.licence and card.description and card.modality and card.scores["validation"]
    assert all(datum["image"] and datum["shape"] for datum in card.training["data"])
    assert "vnc" not in (bundle.folder / "card.yaml").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_command_that_trains_a_shipped_model_is_there(name):
    """The last file of the command trains it, with the settings of the card."""
    training = load_bundle(name).card.training
    files = re.findall(r"examples/\S+\.yaml", training["command"])
    document = yaml.safe_load((ROOT / files[-1]).read_text())
    settings = parse_training(document, where=files[-1]).model_dump(mode="json")
    assert all((ROOT / file).exists() for file in files)
    told = training["settings"]
    # a setting that came later has its default
    assert {key: value for key, value in settings.items() if key in told} == told


@pytest.mark.parametrize("name", NAMES)
def test_shipped_model_predicts(name):
    bundle = load_bundle(name)
    card = bundle.card
    z, y, x = (-(-16 // m) * m for m in card.multiple)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, z, y, x), np.float32))
    with torch.inference_mode():
        made = bundle.network()(image)
    assert made.shape == (1, len(card.labels), card.factor * z, y, x) and made.isfinite().all()
    assert made.std() > 0.1
