"""What of a run, or of a single volume, is shown."""

from contextlib import suppress

from ..errors import DataError
from ..stages import VolumeOutput
from ..volumes import Store, open_volume
from ..workflow import Run
from .server import open_in_browser, serve
from .state import Layer, LayerKind


def view_run(url: str, *, port: int = 0, open_browser: bool = True) -> None:
    """Serve a run or a volume to Neuroglancer until Ctrl-C.

    Raises:
        DataError: where nothing is there to be shown yet.
        UsageError: where the port is taken or the viewer is not installed.
    """
    with serve(layers_of(url), port=port) as server:
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        if open_browser and not open_in_browser(server.url):
            print("no browser could be opened: open the address above", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def layers_of(url: str) -> list[Layer]:
    """Return the layers of a run, inputs first, or the one layer of a volume."""
    if Store(url).read("run.json") is None:
        volume = open_volume(url)
        return [Layer("volume", url, "segmentation" if volume.spec.kind == "labels" else "image")]
    run = Run.open(url)
    layers: dict[str, Layer] = {}
    for planned in run.plan.stages:
        for role, source in planned.sources.items():
            if source.kind == "volume":
                output = source.volume
                image: LayerKind = "fluorescence" if role in planned.stage.transformed else "image"
                kind: LayerKind = "segmentation" if output.spec.kind == "labels" else image
                layers[source.name] = Layer(source.name, source.urls[output.name], kind, affine=source.affine)
        for name, found in planned.own.outputs.items():
            if isinstance(found, VolumeOutput) and _is_begun(run, planned.name):
                label = planned.name if name == planned.stage.kind else f"{planned.name}.{name}"
                layers[label] = Layer(label, planned.own.urls[name], _kind(planned.stage.kind, found), _visible(name))
    if not layers:
        raise DataError(f"{url}: nothing to show yet; run it first with 'neurokube run'")
    # what is added to the others is drawn last
    return sorted(layers.values(), key=lambda layer: layer.kind == "fluorescence")


def _is_begun(run: Run, stage: str) -> bool:
    """Whether any block of the stage's first step is recorded."""
    step = next(s for s in run.plan.steps.values() if s.planned.name == stage)
    return run.ledger(step).count() > 0


def _kind(stage: str, output: VolumeOutput) -> LayerKind:
    if output.spec.kind == "labels":
        return "segmentation"
    if stage == "resampling":
        return "fluorescence"
    return "probability" if stage in ("boundaries", "semantics", "fusion") else "image"


def _visible(output: str) -> bool:
    return output in ("image", "segmentation")
