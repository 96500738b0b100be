"""The plot of a tuning: the score by trial with the best so far, and against each setting, in small panels.

Drawn with Pillow, at twice the size and scaled down, which smooths edges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil, floor, inf, log10
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .ranges import Range, shown
from .study import Trial

_FINE = 2
"""Pixels drawn for one that is kept, along each side."""

_WIDTH, _MARGIN = 1200, 24
_TOP, _HEIGHT, _PANEL, _ACROSS = 64, 300, 230, 4

# Okabe & Ito's palette, which stays apart for colour-blind eyes
_DOT, _BEST, _START, _LINE = (86, 146, 190), (213, 94, 0), (0, 0, 0), (0, 114, 178)
_INK, _PALE, _GRID = (40, 40, 40), (110, 110, 110), (228, 228, 228)


def plot(
    title: str,
    score: str,
    ranges: Sequence[Range],
    trials: Sequence[Trial],
    told: dict[str, float],
    *,
    rising: bool = False,
) -> bytes:
    """Return a PNG: lower is better; `told` are the importances, by which panels are ordered.

    Of a `rising` score more is better, and the values of trials are its negatives.
    """
    made = [t for t in trials if t.value < inf]
    ordered = sorted(ranges, key=lambda r: -told.get(r.name, 0))
    rows = ceil(len(ordered) / _ACROSS)
    height = _TOP + _HEIGHT + rows * _PANEL + _MARGIN
    picture = Image.new("RGB", (_WIDTH * _FINE, height * _FINE), "white")
    draw = _Drawing(ImageDraw.Draw(picture))
    best = min(made, key=lambda t: t.value)
    draw.text((_MARGIN, 14), title, 19, _INK)
    _legend(draw, len(made) < len(trials))
    span = _Span(*_span([t.value for t in made]), rising)
    _history(draw, score, made, best, span)
    for k, each in enumerate(ordered):
        row, column = divmod(k, _ACROSS)
        wide = (_WIDTH - 2 * _MARGIN) / _ACROSS
        box = (_MARGIN + column * wide, _TOP + _HEIGHT + row * _PANEL, wide, _PANEL)
        _panel(draw, each, told.get(each.name), made, best, box, span, score if column == 0 else "")
    file = BytesIO()
    small = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    # a few inks on white: a palette holds them, in a third of the bytes
    small.quantize(128).save(file, "PNG", optimize=True)
    return file.getvalue()


@dataclass(frozen=True)
class _Drawing:
    """A canvas in pixels that are kept."""

    canvas: ImageDraw.ImageDraw

    def text(self, at: tuple[float, float], text: str, size: float, colour: Any, anchor: str = "la") -> None:
        font = ImageFont.load_default(size * _FINE)
        self.canvas.text((at[0] * _FINE, at[1] * _FINE), text, colour, font, anchor)

    def width(self, text: str, size: float) -> float:
        return float(ImageFont.load_default(size * _FINE).getlength(text)) / _FINE

    def line(self, points: Sequence[tuple[float, float]], colour: Any, width: float = 1) -> None:
        places = [(x * _FINE, y * _FINE) for x, y in points]
        self.canvas.line(places, colour, round(width * _FINE), joint="curve")

    def dot(self, at: tuple[float, float], radius: float, fill: Any, edge: Any = None) -> None:
        (x, y), r = (at[0] * _FINE, at[1] * _FINE), radius * _FINE
        self.canvas.ellipse((x - r, y - r, x + r, y + r), fill, edge, round(1.5 * _FINE) if edge else 0)

    def trial(self, at: tuple[float, float], trial: Trial, best: Trial) -> None:
        """Draw a trial; the first as a ring, the best in its colour."""
        if trial is best:
            self.dot(at, 5, _BEST)
        if trial.number == 0:
            self.dot(at, 6 if trial is best else 4.5, None if trial is best else "white", _START)
        elif trial is not best:
            self.dot(at, 2.6, _DOT)


def _legend(draw: _Drawing, failed: bool) -> None:
    x = _MARGIN + 4.0
    for name, ring, colour in (("as it was", True, None), ("best", False, _BEST), ("other trials", False, _DOT)):
        draw.dot((x, 50), 4.5 if ring else 4, "white" if ring else colour, _START if ring else None)
        draw.text((x + 10, 50), name, 13, _INK, "lm")
        x += 10 + draw.width(name, 13) + 22
    draw.line([(x, 50), (x + 22, 50)], _LINE, 2)
    draw.text((x + 28, 50), "best so far" + ("; trials that failed are not shown" if failed else ""), 13, _INK, "lm")


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return what of the scores is shown: far outliers are drawn at the upper edge."""
    low = min(values)
    high = min(max(values), low + 3 * max(float(np.quantile(values, 0.75)) - low, 1e-9))
    room = 0.06 * (high - low) or 0.05
    return low - room, high + room


Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Span:
    """Values that are shown; where the score rises with what is better, they are its negatives."""

    low: float
    high: float
    rising: bool

    def scale(self, bottom: float, top: float) -> Scale:
        """Return where values lie."""
        return _linear(self.low, self.high, *((top, bottom) if self.rising else (bottom, top)))

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Return round values, and how they are written."""
        return [(tick, f"{-tick + 0.0 if self.rising else tick:g}") for tick in _ticks(self.low, self.high, count)]


def _linear(low: float, high: float, start: float, stop: float) -> Scale:
    return lambda value: start + (stop - start) * (min(max(value, low), high) - low) / (high - low)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers between two."""
    rough = (high - low) / count
    power = 10 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [round(k * step, 10) for k in range(ceil(low / step), floor(high / step) + 1)]


def _values(draw: _Drawing, span: _Span, left: float, right: float, y: Scale, count: int) -> None:
    """Draw lines of equal score, with their values."""
    for tick, word in span.ticks(count):
        draw.line([(left, y(tick)), (right, y(tick))], _GRID)
        draw.text((left - 7, y(tick)), word, 12, _PALE, "rm")


def _history(draw: _Drawing, score: str, trials: Sequence[Trial], best: Trial, span: _Span) -> None:
    left, right, top, bottom = _MARGIN + 46, _WIDTH - _MARGIN, _TOP + 26, _TOP + _HEIGHT - 52
    y = span.scale(bottom, top)
    last = max(trials[-1].number, 1)
    x = _linear(0, last, left + 10, right - 10)
    draw.text((_MARGIN, _TOP + 4), f"{score} ({'higher' if span.rising else 'lower'} is better)", 13, _INK)
    _values(draw, span, left, right, y, 5)
    for number in _ticks(0, last, 10):
        if number == int(number):
            draw.text((x(number), bottom + 6), f"{number:g}", 12, _PALE, "ma")
    draw.text(((left + right) / 2, bottom + 22), "trial", 13, _INK, "ma")
    steps: list[tuple[float, float]] = []
    lowest = inf
    for trial in trials:
        if trial.value < lowest:
            steps += [(x(trial.number), y(lowest))] if steps else []
            lowest = trial.value
            steps.append((x(trial.number), y(lowest)))
    draw.line([*steps, (x(last), y(lowest))], _LINE, 2)
    for trial in sorted(trials, key=lambda t: (t is best, t.number == 0)):
        draw.trial((x(trial.number), y(trial.value)), trial, best)


def _panel(
    draw: _Drawing,
    each: Range,
    importance: float | None,
    trials: Sequence[Trial],
    best: Trial,
    box: tuple[float, float, float, float],
    span: _Span,
    score: str,
) -> None:
    """Draw the score against one setting."""
    left, right = box[0] + 46, box[0] + box[2] - 6
    top, bottom = box[1] + 26, box[1] + box[3] - 40
    y = span.scale(bottom, top)
    draw.text((left, box[1] + 4), each.name, 13, _INK)
    if importance is not None:
        said = f"importance {importance:.0%}"
        # beside a long name there is room for the number alone
        if draw.width(f"{each.name} {said}", 13) > right - left:
            said = f"{importance:.0%}"
        draw.text((right, box[1] + 4), said, 13, _PALE, "ra")
    _values(draw, span, left, right, y, 4)
    known = [t for t in trials if t.settings[each.name] is not None]
    place, ticks = _across(each, [t.settings[each.name] for t in known], left + 8, right - 8)
    for k, (value, word) in enumerate(ticks):
        # words of choices that would run into each other stand in two rows
        row = 12 * (k % 2) if each.choices and len(ticks) > 4 else 0
        draw.text((place(value), bottom + 6 + row), word, 11 if each.choices else 12, _PALE, "ma")
    for trial in sorted(known, key=lambda t: (t is best, t.number == 0)):
        draw.trial((place(trial.settings[each.name]), y(trial.value)), trial, best)


def _across(each: Range, values: Sequence[Any], left: float, right: float) -> tuple[Callable[[Any], float], Any]:
    """Return where values of a setting lie, and ticks (value, word)."""
    if each.choices:
        known = [*each.choices, *dict.fromkeys(v for v in values if v not in each.choices)]
        pitch = (right - left) / len(known)
        return lambda value: left + (known.index(value) + 0.5) * pitch, [(v, shown(v)) for v in known]
    low, high = min([each.low, *values]), max([each.high, *values])
    if not each.log or low <= 0:
        return _linear(low, high, left, right), [(t, f"{t:g}") for t in _ticks(low, high, 5)]
    scale = _linear(log10(low), log10(high), left, right)
    tens = [m * 10.0**k for k in range(floor(log10(low)), ceil(log10(high)) + 1) for m in (1, 3)]
    return lambda value: scale(log10(value)), [(t, f"{t:g}") for t in tens if low <= t <= high]
