"""The folder of a training, and the file in it that says what is trained there."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, DataError, UsageError, surroundings
from ..networks import Bundle, load_bundle
from .config import AnyTraining, Translation

MARK = "training.json"
CHECKPOINTS = "checkpoints"

_OF_NO_CONSEQUENCE = {"patience", "loggers", "loaders", "scratch", "cache", "task"}
"""Settings with which a training goes on whatever they were before; what there is else tells the task."""


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


def identity_of(settings: AnyTraining, origin: Bundle | None) -> dict[str, Any]:
    """Return what must be the same for a training to be gone on with."""
    document = {
        "training": settings.model_dump(mode="json", exclude=_OF_NO_CONSEQUENCE),
        "from": origin.card.sha256 if origin else None,
    }
    if isinstance(settings, Translation) and settings.segmentation is not None:
        document["segmentation"] = load_bundle(settings.segmentation).card.sha256
    return {"key": hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16], **document}


def check_folder(folder: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds what must not be replaced, or nothing or another training to go on with.

    Raises:
        UsageError: where there is a training that is not asked for, or none that is.
        ConfigurationError: where the training to go on with is another.
        DataError: where the file that says what it is is damaged.
        TryAgainError: where the disk is full.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and not overwrite and mark.exists():
            raise UsageError(
                f"{folder}: holds a training already; go on with it by --resume, replace it by --overwrite, "
                "or choose another name"
            )
        if resume and not mark.exists():
            raise UsageError(f"{folder}: nothing to resume there; start without --resume")
        if resume and (found := json.loads(mark.read_text())).get("key") != identity["key"]:
            raise ConfigurationError(
                f"{folder}: was trained with other settings or another --from (changed: {_changed(found, identity)}); "
                "put them back, or start anew with --overwrite"
            )
    except OSError as error:
        raise surroundings(error, str(folder)) or UsageError(f"{folder}: {error.strerror}") from None
    except json.JSONDecodeError:
        raise DataError(f"{mark}: damaged; start anew with --overwrite") from None


def _changed(found: dict[str, Any], identity: dict[str, Any]) -> str:
    """Return which settings of a training differ from those that are asked for; of a model, its weights count."""
    before, now = found.get("training", {}), identity["training"]
    changed = [name for name in now if before.get(name) != now[name]]
    models = {"--from": "from", "segmentation": "segmentation"}
    changed += [f"the model of {name}" for name, key in models.items() if found.get(key) != identity.get(key)]
    return ", ".join(changed)
