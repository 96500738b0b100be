"""One process a training: pods that follow one another, or a driver's after it was killed, wait for one another."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import TryAgainError
from ..training.config import Settings
from ..workflow.run import locked

_PATIENCE, _INTERVAL = 600.0, 2.0
"""Seconds that a pod waits for one before it that may still be at work, and between looks."""


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Hold the folder of a training against others that would go on with it, as long as the store knows of them.

    A pod may be started while the one before it is still ending, or its node is lost: it waits.

    Raises:
        TryAgainError: where another process has it for long.
    """
    folder = Path(settings.workspace) / settings.name
    if int(os.environ.get("LOCAL_RANK", "0")):
        # the first of several devices has it
        yield
        return
    began = time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(str(folder)))
                break
            except TryAgainError:
                if time.monotonic() - began > _PATIENCE:
                    raise
            time.sleep(_INTERVAL)
        yield
