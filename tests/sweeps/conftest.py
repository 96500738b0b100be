"""What the tests of sweeps share: small tissue, and a sweep of a tiny training on it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "training"))
sys.path.append(str(Path(__file__).parents[1] / "engines"))

from blobs import write_tissue


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """Return the paths of an image, the truth of its blobs, and another pair for validation."""
    return write_tissue(tmp_path_factory.mktemp("tissue"))
