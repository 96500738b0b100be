"""The folder of a training, and the file in it that says what is trained there."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import UsageError, surroundings

MARK = "training.json"


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Say in a folder what is trained there; an earlier training goes.

    Raises:
        TryAgainError: where the disk is full, or the folder cannot be written.
    """
    try:
        if (folder / MARK).exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text(json.dumps(identity, indent=2))
    except OSError as error:
        raise surroundings(error, str(folder)) or UsageError(f"{folder}: {error.strerror}") from None
