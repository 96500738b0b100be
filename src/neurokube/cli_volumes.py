"""`neurokube export`: volumes in the formats of other tools."""

import json
from typing import Annotated

import typer


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
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="threads that copy")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")] = False,
) -> None:
    """Export a volume for other tools; what was stopped goes on when it is asked for again."""
    from dataclasses import asdict

    from .blocks import parse_region
    from .volumes.exporting import export_volume
    from .volumes.volume import nanometres
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
        workers=workers,
        quiet=quiet,
    )
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    z, y, x = report.shape
    print(
        f"{report.url}: {report.format}, {z} x {y} x {x} voxels (z y x) of {nanometres(report.voxel_size)}, "
        f"{report.dtype}, {counted(report.resolutions, 'resolution')}, in {report.seconds:.1f} s "
        f"({report.megabytes_per_second:.0f} MB/s)" + ", the rest of an earlier call" * report.resumed
    )
    for remark in report.remarks:
        print(f"note: {remark}")


def add(app: typer.Typer) -> None:
    """Add the commands about volumes."""
    app.command()(export)
