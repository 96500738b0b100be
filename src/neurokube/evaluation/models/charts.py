"""Charts as numbers for SVG: where bars, curves and ticks lie; the page's template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..curves import Curve

# Okabe & Ito's palette, which stays apart for colour-blind eyes; yellow is too pale for lines
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#888888")
_DASHES = ("", "7 3", "2 3")


@dataclass(frozen=True)
class Style:
    """How a model is drawn in every chart: a colour, and a dash pattern for lines."""

    name: str
    colour: str
    dash: str


def styles(names: Sequence[str]) -> list[Style]:
    """Return a style a model; colours come again with another dash pattern after seven."""
    return [
        Style(name, _COLOURS[k % len(_COLOURS)], _DASHES[k // len(_COLOURS) % len(_DASHES)])
        for k, name in enumerate(names)
    ]


@dataclass(frozen=True)
class Bar:
    """One bar; without a value the model lacks the label."""

    x: float
    y: float
    width: float
    height: float
    style: Style
    value: float | None
    title: str


@dataclass(frozen=True)
class BarChart:
    """Groups of bars side by side, values 0 to 1; pixels from the upper left corner."""

    width: float
    left: float
    top: float
    bottom: float
    bars: tuple[Bar, ...]
    groups: tuple[tuple[str, float], ...]
    ticks: tuple[tuple[str, float], ...]
    has_values: bool


def bar_chart(models: Sequence[Style], groups: Sequence[tuple[str, Sequence[float | None]]]) -> BarChart:
    """Lay out a chart of groups (name, a value a model)."""
    left, top, height, gap = 50.0, 24.0, 260.0, 22.0
    bar = min(48.0, max(14.0, 860 / len(groups) / len(models) - gap / len(models)))
    pitch = max(bar * len(models) + gap, 84.0)
    bars, centres = [], []
    for g, (name, values) in enumerate(groups):
        centre = left + pitch * (g + 0.5)
        centres.append((name, centre))
        for m, (style, value) in enumerate(zip(models, values, strict=True)):
            x, tall = centre + (m - len(models) / 2) * bar, height * (value or 0)
            said = "no such label" if value is None else f"F1 {value:.3f}"
            title = f"{style.name}, {name}: {said}"
            bars.append(Bar(x, top + height - tall, bar - 2, tall, style, value, title))
    ticks = tuple((f"{t:.1f}", top + height * (1 - t)) for t in np.linspace(0, 1, 6))
    return BarChart(
        left + pitch * len(groups) + 4, left, top, top + height, tuple(bars), tuple(centres), ticks, bar >= 24
    )


@dataclass(frozen=True)
class Line:
    """The precision-recall curve of a model, as the points of an SVG polyline, and its operating point."""

    points: str
    at: tuple[float, float]
    style: Style
    title: str


@dataclass(frozen=True)
class CurveChart:
    """Recall along x, precision along y, both 0 to 1; pixels from the upper left corner."""

    label: str
    lines: tuple[Line, ...]
    equal_f1: tuple[tuple[str, str, float, float], ...]
    """Lines of equal F1: name, points, and where the name stands."""


SIDE, LEFT, TOP = 250.0, 46.0, 12.0
"""The square of a precision-recall chart, and what is left of it and above it, in pixels."""


def curve_chart(label: str, entries: Sequence[tuple[Style, Curve, int]]) -> CurveChart:
    """Lay out the curves of a label, one a (model, curve, level of the threshold)."""
    lines = []
    for style, curve, level in entries:
        recall, precision = curve.recall, curve.precision
        # where nothing is found, precision says nothing
        shown = recall > 0
        title = (
            f"{style.name}: average precision {curve.average_precision:.3f}; "
            f"precision {precision[level]:.3f} and recall {recall[level]:.3f} from {level / 255:.2f} on"
        )
        at = _place(float(recall[level]), float(precision[level]))
        lines.append(Line(_points(recall[shown], precision[shown]), at, style, title))
    return CurveChart(label, tuple(lines), tuple(_equal(f1) for f1 in (0.2, 0.4, 0.6, 0.8)))


def _equal(f1: float) -> tuple[str, str, float, float]:
    recall = np.linspace(f1 / (2 - f1), 1, 40)
    precision = f1 * recall / (2 * recall - f1)
    x, y = _place(1, float(precision[-1]))
    return f"{f1:.1f}", _points(recall, precision), x, y


def _points(recall: Sequence[float] | np.ndarray, precision: Sequence[float] | np.ndarray) -> str:
    places = dict.fromkeys(_place(float(r), float(p)) for r, p in zip(recall, precision, strict=True))
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _place(recall: float, precision: float) -> tuple[float, float]:
    return round(LEFT + SIDE * recall, 1), round(TOP + SIDE * (1 - precision), 1)
