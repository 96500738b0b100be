"""Model bundles: weights as safetensors beside a card that says what they are, a network or a forest.

<bundle>/card.yaml
<bundle>/weights.safetensors      (or model.pt, TorchScript, or model.onnx, of models from elsewhere)

A bundle is data: nothing in it is unpickled, and code runs only where a card names an importable module
that the user has installed.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .. import __version__
from ..errors import DataError, UsageError, surroundings
from .normalization import Normalization

if TYPE_CHECKING:
    from torch import Tensor, nn

_Array = TypeVar("_Array")

CARD = "card.yaml"
WEIGHTS: Final = "weights.safetensors"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Margin = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]


class UNetLevel(_Strict):
    """One resolution of a network, from fine to coarse: features, the kernels of its blocks, the pooling before it."""

    features: PositiveInt
    kernels: tuple[Shape, Shape]
    pooling: Shape


class OwnArchitecture(_Strict):
    """A network of ours, which can be trained on."""

    levels: tuple[UNetLevel, ...]


class UNetArchitecture(OwnArchitecture):
    """Our U-Net (`networks.unet`)."""

    kind: Literal["unet"] = "unet"


class InceptionArchitecture(OwnArchitecture):
    """Our network of inception layers (`networks.inception`)."""

    kind: Literal["inception"] = "inception"
    dilations: tuple[PositiveInt, ...]


class GeneratorConfig(_Strict):
    """What a network that makes images of images (`networks.generator`) looks like."""

    features: PositiveInt = 32
    blocks: PositiveInt = Field(8, description="residual blocks, of two convolutions each")
    factor: PositiveInt = Field(1, description="sections that come out for each that goes in")
    plane: Literal["zx", "yx"] = Field("zx", description="the axes that convolutions see")
    aside: Annotated[int, Field(ge=0)] = Field(
        0, description="voxels from a plane to the neighbours on either side that each block sees too; 0: none"
    )

    @model_validator(mode="after")
    def _sees_sections(self) -> Self:
        if self.factor > 1 and "z" not in self.plane:
            raise ValueError(f"plane: {self.plane} sees one section, which tells nothing of those between; use zx")
        return self

    @property
    def receptive_field(self) -> tuple[int, int, int]:
        """How many voxels (z, y, x) of the input on either side of one its value can depend on."""
        aside = self.blocks * self.aside
        z, y, x = (2 * self.blocks + 2 if axis in self.plane else aside for axis in "zyx")
        return z, y, x


class GeneratorArchitecture(GeneratorConfig):
    """Our network that makes images of images (`networks.generator`)."""

    kind: Literal["generator"] = "generator"


class TorchScriptArchitecture(_Strict):
    """Somebody else's model as TorchScript."""

    kind: Literal["torchscript"] = "torchscript"


class OnnxArchitecture(_Strict):
    """Somebody else's model as ONNX."""

    kind: Literal["onnx"] = "onnx"


class PythonArchitecture(_Strict):
    """A module that can be imported: `package.module:factory`, called with `arguments`, returns the network."""

    kind: Literal["python"] = "python"
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    arguments: dict[str, Any] = {}


class ForestArchitecture(_Strict):
    """A random forest over edges of a fragment graph (`networks.forest`)."""

    kind: Literal["forest"] = "forest"
    trees: PositiveInt
    features: tuple[str, ...] = Field(min_length=1, description="what it sees of an edge, in order (`stages.features`)")


Architecture = Annotated[
    UNetArchitecture
    | InceptionArchitecture
    | GeneratorArchitecture
    | TorchScriptArchitecture
    | OnnxArchitecture
    | PythonArchitecture,
    Field(discriminator="kind"),
]


def _named(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"'{name}' is no name; use letters, digits, '.', '_' and '-', the first no sign")
    return name


Name = Annotated[str, AfterValidator(_named)]
"""What a model, and with it its training, may be called: a folder's name anywhere."""


class _Named(_Strict):
    format: Literal[1] = 1
    name: Name
    description: str = ""
    licence: str | None = None
    authors: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()
    neurokube: str = __version__


class Card(_Named):
    """What a network is: everything that is needed to run it, to judge it, and to make it again."""

    architecture: Architecture
    channels: PositiveInt = Field(1, description="image channels")
    inputs: tuple[str, ...] | None = Field(None, description="what the image channels are, in order, the image first")
    labels: tuple[str, ...] = Field(min_length=1, description="what the output channels are, in order")
    output: Literal["logits", "probabilities", "image"] = "logits"
    axes: Literal["zyx"] = "zyx"
    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(description="nm (z, y, x) of what goes in")
    modality: str | None = None
    normalization: Literal["volume"] | Normalization = Field(
        "volume", description="grey values to zero mean and unit deviation: as measured on each volume, or fixed"
    )
    trained_normalization: Normalization | None = Field(None, description="mean over the training volumes")
    target: Normalization | None = Field(
        None, description="grey values that an image is put back into [default: those it had]"
    )
    window: Shape = Field(description="voxels (z, y, x) it was trained with")
    multiple: Shape = Field((1, 1, 1), description="sides of a window are multiples of these")
    halo: Margin = Field(description="voxels at a window's faces that see too little around them")
    thresholds: dict[str, float] = Field({}, description="probability from which a label counts, found in validation")
    bias: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="bias of the multicut that suits its boundaries, where somebody measured it"
    )
    scores: dict[str, Any] = {}
    training: dict[str, Any] = Field({}, description="data and its licences, settings, the command that made it")
    weights: str = Field(WEIGHTS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a name occurs twice")
        if self.inputs is not None and len(set(self.inputs)) != self.channels:
            raise ValueError(f"inputs: {self.channels} different names are needed, one a channel")
        if self.channels > 1 and isinstance(self.normalization, Normalization):
            raise ValueError("normalization: of several channels each is measured on its volume: volume")
        if unknown := [name for name in self.thresholds if name not in self.labels]:
            raise ValueError(f"thresholds: {', '.join(unknown)} is no label")
        if isinstance(self.architecture, GeneratorArchitecture) and self.output != "image":
            raise ValueError("output: a generator makes an image")
        if self.output == "image" and (self.labels, self.thresholds) != (("image",), {}):
            raise ValueError("labels: of a model that makes an image there is one, image, without a threshold")
        if self.target is not None and self.output != "image":
            raise ValueError("target: only a model that makes an image has one")
        if any(w % m for w, m in zip(self.window, self.multiple, strict=True)):
            raise ValueError(f"window: {self.window} is no multiple of {self.multiple}")
        if any(2 * h >= w for h, w in zip(self.halo, self.window, strict=True)):
            raise ValueError(f"halo: two of {self.halo} leave nothing of a window of {self.window}")
        return self

    @property
    def further(self) -> tuple[str, ...]:
        """The names of the image channels beside the first."""
        return (self.inputs or tuple(f"channel-{k}" for k in range(self.channels)))[1:]

    @property
    def factor(self) -> int:
        """How many sections come out for each that goes in."""
        return self.architecture.factor if isinstance(self.architecture, GeneratorArchitecture) else 1


class EdgeFilter(_Strict):
    """A filter of the image, of `width` nm, that edges were measured on; `name` is what the graph calls it."""

    name: str
    filter: str
    width: PositiveFloat


class ForestCard(_Named):
    """What a forest is: the features that it sees of an edge, and what a graph must have measured for them."""

    architecture: ForestArchitecture
    labels: tuple[Literal["boundary"]] = Field(("boundary",), description="the one thing that it tells of an edge")
    channels: tuple[str, ...] = Field((), description="further channels of the graph that it sees, by name")
    filters: tuple[EdgeFilter, ...] = Field((), description="filters of the image that it sees")
    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(description="nm (z, y, x) of the fragments")
    modality: str | None = None
    scores: dict[str, Any] = {}
    training: dict[str, Any] = Field({}, description="data and its licences, settings, the command that made it")
    weights: Literal["weights.safetensors"] = WEIGHTS
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


AnyCard = Card | ForestCard


def numbers(card: AnyCard) -> dict[str, float]:
    """Return F1 by label in validation, or where the scores have it, else all numbers at their top."""
    validation = card.scores.get("validation")
    scores = validation["f1"] if isinstance(validation, Mapping) and "f1" in validation else card.scores
    found = {name: score.get("f1") if isinstance(score, Mapping) else score for name, score in scores.items()}
    return {n: v for n, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


@dataclass(frozen=True)
class AnyBundle:
    """A model on disk whose card was read and whose weights have the checksum that it names."""

    folder: Path
    card: AnyCard

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / self.card.weights

    def _loaded(self, load: Callable[[Path], dict[str, _Array]]) -> dict[str, _Array]:
        """Return what the file of weights holds, as tensors or as arrays."""
        from safetensors import SafetensorError

        try:
            return load(self.weights)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.weights}: cannot be read ({error}); get the bundle again") from None


@dataclass(frozen=True)
class Bundle(AnyBundle):
    """A network."""

    card: Card

    def tensors(self) -> "dict[str, Tensor]":
        """Return the weights of a safetensors file.

        Raises:
            DataError: where the file is none.
        """
        from safetensors.torch import load_file

        return self._loaded(load_file)

    def network(self, *, fold: bool = True) -> "nn.Module":
        """Return the network with its weights, in evaluation mode; batch norms folded unless asked not to.

        Raises:
            DataError: where weights do not fit the architecture, or its code cannot be imported.
        """
        from .networks import build

        return build(self, fold=fold)


@dataclass(frozen=True)
class ForestBundle(AnyBundle):
    """A forest."""

    card: ForestCard

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what its file of weights holds.

        Raises:
            DataError: where it cannot be read.
        """
        from safetensors.numpy import load_file

        return self._loaded(load_file)


def load_bundle(model: str) -> Bundle:
    """Open a network by the path of its bundle's folder, or by the name of an installed or shipped one.

    Raises:
        UsageError: where there is none, or it is a forest.
        DataError: where it is damaged: names what.
    """
    found = load_any(model)
    return Bundle(found.folder, _of_network(found.card, found.folder))


def load_any(model: str) -> AnyBundle:
    """Open a network or a forest; otherwise as `load_bundle`."""
    folder = find(model)
    card = read_any_card(folder)
    weights = folder / card.weights
    if not weights.is_file():
        raise DataError(f"{folder}: its weights ({card.weights}) are missing; get the bundle again")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != card.sha256:
        raise DataError(
            f"{weights}: its checksum is {found[:12]}..., the card says {card.sha256[:12]}...; "
            "the file is damaged or was exchanged: get the bundle again"
        )
    return ForestBundle(folder, card) if isinstance(card, ForestCard) else Bundle(folder, _of_network(card, folder))


def read_card(folder: Path) -> Card:
    """Read the card of a network.

    Raises:
        UsageError: where it is that of a forest.
        DataError: where there is none or it says something that cannot be.
    """
    return _of_network(read_any_card(folder), folder)


def _of_network(card: AnyCard, folder: Path) -> Card:
    if not isinstance(card, Card):
        raise UsageError(
            f"{folder}: a forest, which tells boundaries between fragments, where a network is needed; name a network "
            "here, and the forest in a multicut stage, as 'forest'"
        )
    return card


def read_any_card(folder: Path) -> AnyCard:
    """Read the card of a network or a forest.

    Raises:
        DataError: where there is none or it says something that cannot be.
    """
    path = folder / CARD
    try:
        return _validated(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise surroundings(error, str(path)) or DataError(f"{path}: {error.strerror}; name a model bundle") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no YAML ({' '.join(str(error).split())[:100]}); get the bundle again") from None
    except ValidationError as error:
        raise DataError(f"{path}: {first_mistake(error)}") from None


def _validated(document: Any) -> AnyCard:
    architecture = document.get("architecture") if isinstance(document, dict) else None
    is_forest = isinstance(architecture, dict) and architecture.get("kind") == "forest"
    return ForestCard.model_validate(document) if is_forest else Card.model_validate(document)


def first_mistake(error: ValidationError) -> str:
    """Return what is wrong first, as `field: what`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{field + ': ' if field else ''}{message}"


def write_bundle(folder: Path, card: dict[str, Any], tensors: "dict[str, Tensor]") -> Bundle:
    """Write a bundle of safetensors; a bundle that is there is replaced, the card last."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return write_files(folder, card, WEIGHTS, data)


def write_forest(folder: Path, card: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ForestBundle:
    """Write a bundle of a forest; a bundle that is there is replaced, the card last."""
    from safetensors.numpy import save

    # safetensors stores the memory of an array, in whatever order it lies
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    finished = _write(folder, card, WEIGHTS, data)
    assert isinstance(finished, ForestCard)
    return ForestBundle(folder, finished)


def write_files(folder: Path, card: dict[str, Any], weights: str, data: bytes) -> Bundle:
    """Write a network whose weights are the bytes of a file named `weights`.

    Raises:
        DataError: where the card cannot be.
    """
    return Bundle(folder, _of_network(_write(folder, card, weights, data), folder))


def _write(folder: Path, card: dict[str, Any], weights: str, data: bytes) -> AnyCard:
    try:
        finished = _validated({**card, "weights": weights, "sha256": hashlib.sha256(data).hexdigest()})
    except ValidationError as error:
        raise DataError(first_mistake(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((weights, data), (CARD, _yaml(finished).encode())):
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    return finished


def _yaml(card: AnyCard) -> str:
    text: str = yaml.safe_dump(
        card.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=100
    )
    return text


BEST = "best of "
"""Before the name of a file that `neurokube evaluate --models` wrote: the model that did best there."""
SHIPPED = Path(__file__).parent / "shipped"


def installed_folder() -> Path:
    """Return where imported models are kept: NEUROKUBE_MODELS, or a folder in the user's home."""
    return Path(os.environ.get("NEUROKUBE_MODELS") or Path.home() / ".local" / "share" / "neurokube" / "models")


def find(model: str) -> Path:
    """Return the folder of a bundle named by path or by name.

    Raises:
        UsageError: where there is none.
    """
    if model.startswith(BEST):
        return find(_best(Path(model.removeprefix(BEST)).expanduser()))
    path = Path(model).expanduser()
    if (path / CARD).is_file():
        return path.absolute()
    for place in (installed_folder(), SHIPPED):
        if "/" not in model and (place / model / CARD).is_file():
            return place / model
    names = [bundle.name for bundle, _ in known()]
    raise UsageError(
        f"model '{model}': no bundle of that name or path (a folder with {CARD}); "
        f"there are {', '.join(names) or 'none'}"
    )


def _best(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["best"])
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; write it with 'neurokube evaluate --models'") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file}: not what 'neurokube evaluate --models' writes") from None


def known() -> Iterator[tuple[AnyCard, str]]:
    """Yield the cards of all installed and shipped models, and which of the two each is; damaged ones are left out."""
    seen = set()
    for place, kind in ((installed_folder(), "installed"), (SHIPPED, "shipped")):
        for path in sorted(place.glob(f"*/{CARD}")):
            try:
                card = read_any_card(path.parent)
            except DataError:
                continue
            if path.parent.name not in seen:
                seen.add(path.parent.name)
                yield card, kind
