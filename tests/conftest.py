"""Settings for all tests, and what runs a command line."""

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

# how long an example takes says nothing about what it shows
settings.register_profile("neurokube", deadline=None)
settings.load_profile("neurokube")


@pytest.fixture
def command(capsys, monkeypatch) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Return what runs a command line, and returns its exit code, standard output and standard error."""
    from neurokube.cli import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["neurokube", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def s3(monkeypatch):
    """A bucket that holds all conditions; change it to make it another."""
    from s3_server import Bucket, serving

    from neurokube.volumes import store as stores

    bucket = Bucket()
    with serving(bucket) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr(stores, "_HELD", {})
        yield bucket
