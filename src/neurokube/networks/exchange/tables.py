"""What models there are, for people and for programs."""

from typing import Any

from ..bundle import AnyBundle, Card, known, numbers


def models_table() -> list[dict[str, Any]]:
    """Return a row for each installed and shipped model; voxel sizes (z, y, x) in nm."""
    return [
        {
            "name": card.name,
            "where": kind,
            "labels": list(card.labels),
            "kind": card.architecture.kind,
            "factor": card.factor if isinstance(card, Card) else 1,
            "voxel_size": list(card.voxel_size),
            "modality": card.modality,
            "licence": card.licence,
            "scores": ", ".join(f"{name} {value:.2f}" for name, value in numbers(card).items()),
        }
        for card, kind in known()
    ]


def describe(bundle: AnyBundle) -> dict[str, Any]:
    """Return the card of a model, and where it is and how large."""
    return {
        **bundle.card.model_dump(mode="json", exclude_none=True),
        "folder": str(bundle.folder),
        "bytes": bundle.weights.stat().st_size,
    }


def print_models(rows: list[dict[str, Any]]) -> None:
    """Print the rows of `models_table`."""
    from rich.table import Table

    from ...progress import page

    table = Table()
    for name, whole in (("model", True), ("where", True), ("voxel size (nm)", False), ("labels, and how good", False)):
        table.add_column(name, no_wrap=whole)
    for row in rows:
        size = " x ".join(f"{n:g}" for n in row["voxel_size"])
        good = ", ".join(row["labels"]) + (f"; F1: {row['scores']}" if row["scores"] else "")
        good += f", {row['factor']} sections of one" if row["factor"] > 1 else ""
        good += ", a forest of edges" if row["kind"] == "forest" else ""
        table.add_row(row["name"], row["where"], f"{size} {row['modality'] or ''}".strip(), good)
    page(markup=False, highlight=False).print(table)


def print_description(description: dict[str, Any]) -> None:
    """Print what `describe` returned as YAML, which is how the card is written."""
    import yaml

    print(yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=100), end="")
