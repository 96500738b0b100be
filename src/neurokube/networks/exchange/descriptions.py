"""The BioImage Model Zoo's own library, kept quiet and off the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bioimageio.spec import InvalidDescr


@contextmanager
def offline(root: Path, *, files: bool = True) -> Iterator[None]:
    """Let descriptions name files below `root`, checked where `files`; advice for curators is not printed."""
    from bioimageio.spec import ValidationContext
    from loguru import logger

    logger.disable("bioimageio.spec")
    try:
        with ValidationContext(root=root, perform_io_checks=files, log_warnings=False):
            yield
    finally:
        logger.enable("bioimageio.spec")


def first_error(description: "InvalidDescr") -> str:
    """Return the field and what is wrong with it."""
    errors = [error for detail in description.validation_summary.details for error in detail.errors]
    if not errors:
        return "it"
    return f"{'.'.join(str(part) for part in errors[0].loc)}: {' '.join(errors[0].msg.split())[:160]}"
