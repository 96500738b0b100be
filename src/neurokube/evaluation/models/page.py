"""The page of a comparison of models: one file with charts, pictures and all numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..overlays import overlay
from ..report import Picture
from . import charts
from .report import ORIGINS, ModelsReport
from .sections import Section


@dataclass(frozen=True)
class _Row:
    """A label's pictures: the image, then an overlay a model, None where it lacks the label."""

    label: str
    caption: str
    image: Picture
    overlays: tuple[tuple[str, Picture | None], ...]


def write_page(report: ModelsReport, sections: Mapping[str, Section]) -> None:
    """Write report.html into the report's folder; `sections` are shown, a label each."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("neurokube.evaluation.models", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    looks = charts.styles([model.name for model in report.models])
    groups = [
        (label, [model.scores[label].f1 if label in model.scores else None for model in report.models])
        for label in report.labels
    ]
    page = environment.get_template("page.html.j2").render(
        report=report,
        origins=ORIGINS,
        styles=looks,
        bars=charts.bar_chart(looks, [*groups, ("mean", [model.mean_f1 for model in report.models])]),
        curves=[_curves(report, label, looks) for label in report.labels],
        side=charts.SIDE,
        left=charts.LEFT,
        top=charts.TOP,
        rows=[_pictures(report, sections[label]) for label in report.labels],
    )
    (Path(report.folder) / "report.html").write_text(page, encoding="utf-8")


def _curves(report: ModelsReport, label: str, looks: list[charts.Style]) -> charts.CurveChart:
    entries = [
        (style, model.scores[label].curve, model.scores[label].level)
        for style, model in zip(looks, report.models, strict=True)
        if label in model.scores
    ]
    return charts.curve_chart(label, entries)


def _pictures(report: ModelsReport, section: Section) -> _Row:
    overlays: list[tuple[str, Picture | None]] = []
    for model in report.models:
        picture = None
        if model.name in section.predictions:
            predicted = (section.predictions[model.name] >= model.scores[section.label].level) & section.known
            caption = f"{model.name}, {section.label}"
            picture = Picture(caption, overlay(predicted, section.positive, section.image, 0.6), section.aspect)
        overlays.append((model.name, picture))
    image = Picture(f"{section.caption}, image", section.image, section.aspect)
    return _Row(section.label, section.caption, image, tuple(overlays))
