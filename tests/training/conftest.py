"""What the tests of training share."""

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from blobs import blobs, document, write

from neurokube.cli import main
from neurokube.training import Training, parse_training


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tissue(tmp_path_factory) -> dict[str, str]:
    """Return the paths of an image, the truth of its blobs, and another pair for validation."""
    folder = tmp_path_factory.mktemp("tissue")
    paths = {}
    for seed, name in enumerate(("", "validation_")):
        image, mask = blobs(seed)
        paths[f"{name}image"] = write(folder / f"{name}image.zarr", image, "image")
        paths[f"{name}blob"] = write(folder / f"{name}blob.zarr", mask)
    return paths


@pytest.fixture
def settings(tissue, tmp_path) -> Callable[..., Training]:
    """Return what makes settings of a tiny training; fields as keywords."""

    def make(*, validated: bool = False, **fields: Any) -> Training:
        return parse_training(document(tissue, tmp_path, validated=validated, **fields), where="test")

    return make


@pytest.fixture
def neurokube(capsys, monkeypatch) -> Iterator[Callable[..., tuple[int, str]]]:
    """Return what runs a command line, and returns its exit code and what it said on standard error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["neurokube", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
