"""Folders in the making: held by one process, and in place of what they replace only when they are complete."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TryAgainError
from ..progress import log


@contextmanager
def held(work: Path, what: str) -> Iterator[None]:
    """Hold a folder that is there for this process alone; `what` names the work, as `import`.

    Raises:
        TryAgainError: where another process holds it.
    """
    handle = os.open(work, os.O_RDONLY)
    try:
        lock(work, handle, what)
        yield
    finally:
        os.close(handle)


def lock(work: Path, handle: int, what: str) -> None:
    """Lock an open file or folder until it is closed.

    Raises:
        TryAgainError: where another process holds it, or has just put it in its place.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TryAgainError(f"{work}: another {what} is writing to it; wait until it ends") from None
    except OSError:
        log.debug("%s: the file system has no locks, going on without", work)
        return
    if not work.exists() or not os.path.samestat(work.stat(), os.fstat(handle)):
        raise TryAgainError(f"{work}: another {what} has just ended; run again")


def swap(work: Path, folder: Path) -> None:
    """Put a complete folder in its place; the one that it replaces goes only when the new one stands."""
    for left in work.rglob("*.__lock"):
        # what tensorstore had begun to write when a kill struck
        left.unlink(missing_ok=True)
    old = folder.with_name(folder.name + ".replaced")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
