"""`neurokube models`: what models there are, and models to and from elsewhere."""

import json
from typing import Annotated, Any

import typer

app = typer.Typer(help="Models: list and show them, import and export them.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Model = Annotated[str, typer.Argument(help="name, or folder of a bundle", show_default=False)]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List shipped and installed models."""
    from .networks.exchange.tables import models_table, print_models

    rows = models_table()
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print_models(rows)
    else:
        print("no models are shipped or installed; 'neurokube models import' gets one")


@app.command()
def show(model: Model, as_json: AsJson = False) -> None:
    """Show the card of a model."""
    from .networks.bundle import load_any
    from .networks.exchange.tables import describe, print_description

    description = describe(load_any(model))
    if as_json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="bundle or BioImage Model Zoo package (folder, zip), .pt, .onnx, or package:factory")
    ],
    name: Annotated[str | None, typer.Option(help="what to call it [default: as it is called there]")] = None,
    folder: Annotated[str | None, typer.Option(help="where to put it [default: the installed models]")] = None,
    labels: Annotated[str | None, typer.Option(help="A,B,...: what the output channels are")] = None,
    voxel_size: Annotated[str | None, typer.Option(help="Z,Y,X in nm")] = None,
    window: Annotated[str | None, typer.Option(help="Z,Y,X voxels that it was trained with")] = None,
    multiple: Annotated[str | None, typer.Option(help="Z,Y,X: sides of windows are multiples of these")] = None,
    halo: Annotated[str | None, typer.Option(help="Z,Y,X voxels to drop at a window's faces")] = None,
    normalization: Annotated[str | None, typer.Option(help="'volume', or MEAN,DEVIATION of grey values")] = None,
    output: Annotated[str | None, typer.Option(help="logits, probabilities or image [default: found out]")] = None,
    modality: Annotated[str | None, typer.Option(help="as FIB-SEM")] = None,
    licence: Annotated[str | None, typer.Option(help="as CC-BY-4.0")] = None,
    weights: Annotated[str | None, typer.Option(help="safetensors file, for package:factory")] = None,
    arguments: Annotated[str | None, typer.Option(help="JSON object, for package:factory")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model of that name")] = False,
    as_json: AsJson = False,
) -> None:
    """Import a model, run it on one window, and put it among the installed ones."""
    from pathlib import Path

    from .networks.exchange.importing import import_model
    from .networks.exchange.tables import describe

    given: dict[str, Any] = {
        "labels": None if labels is None else tuple(label.strip() for label in labels.split(",")),
        "voxel_size": _numbers(voxel_size, "--voxel-size", float),
        "window": _numbers(window, "--window", int),
        "multiple": _numbers(multiple, "--multiple", int),
        "halo": _numbers(halo, "--halo", int),
        "normalization": _normalization(normalization),
        "output": output,
        "modality": modality,
        "licence": licence,
    }
    bundle = import_model(
        source,
        name,
        None if folder is None else Path(folder),
        weights=None if weights is None else Path(weights),
        arguments=_arguments(arguments),
        overwrite=overwrite,
        **{key: value for key, value in given.items() if value is not None},
    )
    if as_json:
        print(json.dumps(describe(bundle), indent=2))
    else:
        print(f"{bundle.card.name}: {', '.join(bundle.card.labels)}; runs; it is in {bundle.folder}")


@app.command()
def export(
    model: Model,
    destination: Annotated[str, typer.Argument(help="file to write", show_default=False)],
    format: Annotated[str, typer.Option(help="bioimageio, onnx or torchscript")] = "bioimageio",
    sample: Annotated[str | None, typer.Option(help="volume whose middle becomes the package's test image")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a model as a BioImage Model Zoo package, ONNX or TorchScript."""
    from pathlib import Path
    from typing import cast

    from .errors import UsageError
    from .networks.bundle import Bundle, load_any
    from .networks.exchange.exporting import Format, export_model

    bundle = load_any(model)
    if not isinstance(bundle, Bundle):
        raise UsageError(
            f"{model}: a forest, which no other program reads; copy its folder, {bundle.folder}, to where it is "
            "wanted, and import it there with 'neurokube models import'"
        )
    image = None if sample is None else _middle(sample, bundle.card.window)
    path = export_model(bundle, Path(destination), format=cast(Format, format), sample=image, overwrite=overwrite)
    if as_json:
        print(json.dumps({"model": bundle.card.name, "file": str(path), "bytes": path.stat().st_size}, indent=2))
    else:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _middle(volume: str, window: tuple[int, int, int]) -> Any:
    """Return grey values of the middle of a volume, twice a window on each axis or what there is."""
    from .blocks import Box
    from .volumes import open_volume

    opened = open_volume(volume)
    sizes = [min(have, 2 * need) for have, need in zip(opened.spec.shape, window, strict=True)]
    start = [(have - size) // 2 for have, size in zip(opened.spec.shape, sizes, strict=True)]
    return opened.read(Box.of(sizes).shift(start))


def _normalization(text: str | None) -> Any:
    from .networks.normalization import Normalization

    if text is None or text == "volume":
        return text
    mean, deviation = _numbers(text, "--normalization", float, 2)
    return Normalization(mean=mean, deviation=deviation)


def _arguments(text: str | None) -> Any:
    from .errors import UsageError

    try:
        arguments = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UsageError(f"--arguments {text}: no JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise UsageError(f"--arguments {text}: must be a JSON object, as '{{\"features\": 8}}'")
    return arguments


def _numbers(text: str | None, option: str, kind: type[int] | type[float], count: int = 3) -> Any:
    from .errors import UsageError

    if text is None:
        return None
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    # a halo, and the mean that is the first of two, may be 0
    positive = numbers if count == 3 and option != "--halo" else numbers[-1:] if count == 2 else ()
    if len(numbers) != count or min(numbers) < 0 or any(n <= 0 for n in positive):
        example = "16,64,64" if count == 3 else "128,32"
        raise UsageError(f"{option} {text}: give {count} numbers with commas between, as {example}")
    return numbers
