"""What the tests of training share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from blobs import document, write_tissue

from neurokube.training import Training, parse_training


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tissue(tmp_path_factory) -> dict[str, str]:
    """Return the paths of an image, the truth of its blobs, and another pair for validation."""
    return write_tissue(tmp_path_factory.mktemp("tissue"))


@pytest.fixture
def settings(tissue, tmp_path) -> Callable[..., Training]:
    """Return what makes settings of a tiny training; fields as keywords."""

    def make(*, validated: bool = False, **fields: Any) -> Training:
        return parse_training(document(tissue, tmp_path, validated=validated, **fields), where="test")

    return make


@pytest.fixture
def neurokube(command) -> Callable[..., tuple[int, str]]:
    """Return what runs a command line, and returns its exit code and what it said on standard error."""

    def run(*arguments: Any) -> tuple[int, str]:
        code, _, said = command(*arguments)
        return code, said

    return run
