"""The worst splits and merges of a segmentation, each with an address in the viewer."""

from collections.abc import Sequence

from ..evaluation import Mistake
from .server import Server, serve
from .state import Layer, View

PREDICTION, TRUTH, IMAGE = "prediction", "truth", "image"


def serve_evaluation(prediction: str, truth: str, image: str | None = None, *, port: int = 0) -> Server:
    """Serve a prediction, its truth and the image, by paths or URLs.

    Raises:
        DataError: where a volume cannot be opened.
        UsageError: where the port is taken or the viewer is not installed.
    """
    layers = [Layer(IMAGE, image, "image")] if image else []
    return serve(
        [*layers, Layer(PREDICTION, prediction, "segmentation"), Layer(TRUTH, truth, "segmentation")], port=port
    )


def show_mistakes(server: Server, mistakes: Sequence[Mistake]) -> list[str]:
    """Return an address for each mistake: prediction and truth side by side, its segments and bodies chosen."""
    return server.show([View(m.position, {PREDICTION: m.segments, TRUTH: m.bodies}) for m in mistakes])
