"""`neurokube export`: volumes in the formats of other tools; and the report that `import` shares with it."""

import json
from typing import Annotated, Any

import typer

Threads = Annotated[int | None, typer.Option("--workers", "-w", min=1, help="threads [default: cores]")]


def threads(workers: int | None) -> int:
    """Return how many threads to take: what is asked for, else one for each core."""
    from .machine import cores

    return cores() if workers is None else workers


def print_report(url: str, report: Any, rate: str, *, as_json: bool, format: str = "", made: str = "") -> bool:
    """Print the report of an import or an export, as JSON or in words; return whether it was in words."""
    from dataclasses import asdict

    from .volumes.volume import nanometres

    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return False
    z, y, x = report.shape
    print(
        f"{url}: {format}{z} x {y} x {x} voxels (z y x) of {nanometres(report.voxel_size)}, {report.dtype}{made}, "
        f"in {report.seconds:.1f} s ({rate})" + ", the rest of an earlier call" * report.resumed
    )
    for remark in report.remarks:
        print(f"note: {remark}")
    return True


def export(
    volume: Annotated[str, typer.Argument(help="volume: folder, URL, or XML of BigDataViewer", show_default=False)],
    destination: Annotated[str, typer.Argument(help="folder, file or URL to create", show_default=False)],
    format: Annotated[
        str, typer.Option("--format", "-f", help="ome-zarr, ome-zarr-0.4, n5, bdv-n5, paintera, precomputed, or a file")
    ],
    scale: Annotated[int, typer.Option(min=0, help="resolution of the volume that becomes the finest one")] = 0,
    levels: Annotated[
        int | None, typer.Option(min=1, help="resolutions to write [default: until one is small]")
    ] = None,
    region: Annotated[str | None, typer.Option(help="cut-out Z0:Z1,Y0:Y1,X0:X1 in voxels of --scale")] = None,
    channel: Annotated[int | None, typer.Option(min=0, help="one channel, of several")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="values are labels, where the volume does not say so")] = (
        False
    ),
    compression: Annotated[
        str | None, typer.Option(help="codec, as zstd, gzip:6, blosc, raw [default: what every reader has]")
    ] = None,
    relabel: Annotated[bool, typer.Option("--relabel", help="number labels from 1 on, with a table beside")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a volume that is there")] = False,
    workers: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")] = False,
) -> None:
    """Export a volume for other tools; what was stopped goes on when it is asked for again."""
    from .blocks import parse_region
    from .volumes.exporting import export_volume
    from .words import counted

    report = export_volume(
        volume,
        destination,
        format=format,
        scale=scale,
        levels=levels,
        region=None if region is None else parse_region(region),
        channel=channel,
        labels=labels,
        compression=compression,
        relabel=relabel,
        overwrite=overwrite,
        workers=threads(workers),
        quiet=quiet,
    )
    made = f", {counted(report.resolutions, 'resolution')}"
    rate = f"{report.megabytes_per_second:.0f} MB/s"
    print_report(report.url, report, rate, as_json=as_json, format=f"{report.format}, ", made=made)


def add(app: typer.Typer) -> None:
    """Add the commands about volumes."""
    app.command()(export)
