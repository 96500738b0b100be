"""A report that is one file: scores, pictures and costs, to open in any browser without a network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NeuroKubeError, surroundings
from .overlays import png


@dataclass(frozen=True)
class Picture:
    """A picture (gray (y, x) or RGB (y, x, 3)) with its caption; `aspect` stretches rows where z is coarse.

    It leads on to `link`, where there is one.
    """

    caption: str
    pixels: NDArray[np.uint8]
    aspect: float = 1.0
    link: str = ""

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(png(self.pixels)).decode()

    @property
    def ratio(self) -> str:
        """Width over height on the page, as CSS has it."""
        return f"{self.pixels.shape[1]} / {self.pixels.shape[0] * self.aspect:g}"


@dataclass(frozen=True)
class Table:
    """Rows under a heading, with a note below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def write_report(
    path: str,
    *,
    title: str,
    summary: str,
    tables: Sequence[Table],
    pictures: Sequence[tuple[str, str, Sequence[Picture]]],
    provenance: Mapping[str, Any],
) -> None:
    """Write a self-contained HTML page; `pictures` holds groups of (heading, text, pictures).

    Raises:
        TryAgainError: where the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("neurokube.evaluation", "."), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        title=title, summary=summary, tables=tables, pictures=pictures, provenance=provenance
    )
    try:
        Path(path).write_text(page)
    except OSError as error:
        raise surroundings(error, path) or NeuroKubeError(f"{path}: {error.strerror}") from None
