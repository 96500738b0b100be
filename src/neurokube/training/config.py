"""The training file: what to learn from, and how."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..blocks import parse_region
from ..errors import ConfigurationError, UsageError, surroundings
from ..networks.bundle import first_mistake
from ..volumes.store import placed

Share = Annotated[float, Field(ge=0, le=1)]
Modality = Literal["sstem", "sbf-sem", "fib-sem"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelSource(_Strict):
    """Where the truth of one label is.

    A volume and the values in it that mean the label; without values, all but 0.  Or `boundaries_of` a
    volume of instances: all within half of `thickness` nm of another instance.
    """

    volume: str | None = None
    values: tuple[int | str, ...] | None = Field(
        None, description="ids that mean the label, or names that an imported annotation gave them; without, all but 0"
    )
    boundaries_of: str | None = Field(None, description="volume of instances whose borders are the label")
    thickness: PositiveFloat = Field(30.0, description="nm, with boundaries_of")
    smallest: Annotated[int, Field(ge=0)] = Field(
        0, description="with boundaries_of: instances of fewer voxels are noise, and belong to what is nearest"
    )
    unlabelled: tuple[int, ...] | None = Field(
        None, description="values of voxels that nobody annotated [default: 0 in imported annotations, else none]"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.volume is None) == (self.boundaries_of is None):
            raise ValueError("give either 'volume' or 'boundaries_of'")
        return self

    def placed(self, folder: Path) -> Self:
        """Return the same with its path, which counts from `folder`, as it is from anywhere."""
        paths = {"volume": self.volume, "boundaries_of": self.boundaries_of}
        return self.model_copy(update={f: placed(path, folder) for f, path in paths.items() if path is not None})

    @property
    def path(self) -> str:
        """The volume that is read."""
        return self.volume or self.boundaries_of or ""


class AnnotatedVolume(_Strict):
    """An image and the truth of some of its labels; a label that is not named is unknown there."""

    image: str
    truth: dict[str, LabelSource] = Field(min_length=1)
    region: str | None = Field(None, description="Z0:Z1,Y0:Y1,X0:X1 in voxels of the image, the part to use")
    weight: PositiveFloat = Field(1.0, description="how often windows come from here")

    @field_validator("truth", mode="before")
    @classmethod
    def _short(cls, truth: Any) -> Any:
        if not isinstance(truth, dict):
            return truth
        return {name: {"volume": source} if isinstance(source, str) else source for name, source in truth.items()}

    @field_validator("region")
    @classmethod
    def _region(cls, region: str | None) -> str | None:
        if region is not None:
            try:
                parse_region(region)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return region

    def placed(self, folder: Path) -> Self:
        """Return the same with its paths, which count from `folder`, as they are from anywhere."""
        truth = {name: source.placed(folder) for name, source in self.truth.items()}
        return self.model_copy(update={"image": placed(self.image, folder), "truth": truth})


class Augmentation(_Strict):
    """What is done to training windows; probabilities a window, strengths at most this much."""

    permutations: bool = Field(True, description="flips and quarter turns that the voxel size allows")
    scale: Share = Field(0.15, description="change of size, in y and x alike")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(30.0, description="degrees, in the plane")
    elastic: NonNegativeFloat = Field(25.0, description="deviation of elastic displacement in nm")
    shift: NonNegativeFloat = Field(12.0, description="deviation of a section's shift in nm, where z is coarse")
    missing: Share = Field(0.03, description="probability that a section is blank")
    dark: Share = Field(0.06, description="probability that a section is much darker or brighter, or has no contrast")
    contrast: NonNegativeFloat = Field(0.25, description="deviation of gain (log) and of brightness (deviations)")
    gamma: NonNegativeFloat = Field(0.25, description="deviation of gamma (log)")
    section_contrast: NonNegativeFloat = Field(0.1, description="the same as contrast, section by section")
    noise: NonNegativeFloat = Field(0.3, description="largest deviation of noise, in deviations of the image")
    blur: NonNegativeFloat = Field(1.0, description="largest deviation of blur in pixels")


class Training(_Strict):
    """One training: `neurokube train FILE`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    workspace: str = Field("models", description="what is trained is written to <workspace>/<name>")
    volumes: tuple[AnnotatedVolume, ...] = Field(min_length=1)
    validation: tuple[AnnotatedVolume, ...] = Field((), description="to choose thresholds and the best step")
    labels: tuple[str, ...] = Field((), description="what the network predicts [default: all that volumes name]")
    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None, description="nm (z, y, x) the network sees [default: that of the model or the first volume]"
    )
    modality: Modality | None = Field(None, description="how the images were taken")
    network: Literal["unet", "inception"] | None = Field(
        None, description="kind of network [default: that of the model, or unet]"
    )
    size: Literal["small", "medium", "large"] | tuple[PositiveInt, ...] = Field(
        "small", description="features a level; small and medium suit a CPU, large a GPU"
    )
    window: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(None, description="voxels (z, y, x)")
    batch: PositiveInt = 2
    steps: PositiveInt = 2000
    interval: PositiveInt = Field(100, description="steps between checkpoints, validations and pictures")
    patience: PositiveInt | None = Field(None, description="intervals without a better score that end the training")
    learning_rate: PositiveFloat | None = Field(None, description="at its highest [default: 3e-3, 1e-3 from a model]")
    weight_decay: NonNegativeFloat = 0.01
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="decay of the average of the weights; 0: none"
    )
    balance: Share = Field(0.5, description="share of windows placed on a label, each label as often as another")
    positive_weight: PositiveFloat = Field(3.0, description="largest weight of a rare label's voxels")
    dice: NonNegativeFloat = Field(1.0, description="weight of the Dice loss beside cross-entropy")
    augmentation: Augmentation = Augmentation()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    devices: PositiveInt | Literal["auto"] = "auto"
    threads: PositiveInt | None = Field(None, description="processor threads [default: all]")
    loaders: Annotated[int, Field(ge=0)] = Field(
        0, description="processes that prepare windows; 0: none beside the training"
    )
    cache: Literal["memory", "scratch"] = Field("memory", description="where images and truth are kept while training")
    scratch: str | None = Field(None, description="folder on a fast disk, with cache: scratch")
    loggers: tuple[Literal["tensorboard", "mlflow"], ...] = ("tensorboard",)
    licence: str | None = Field(None, description="licence of the data, kept in the model's card")
    description: str = ""

    @property
    def all_labels(self) -> tuple[str, ...]:
        """What the network predicts."""
        return self.labels or tuple(dict.fromkeys(name for volume in self.volumes for name in volume.truth))

    @model_validator(mode="after")
    def _labels_are_there(self) -> Self:
        named = {name for volume in self.volumes for name in volume.truth}
        if missing := [name for name in self.labels if name not in named]:
            raise ValueError(
                f"labels: no volume has truth for {', '.join(missing)}; there is {', '.join(sorted(named))}"
            )
        if self.network == "inception" and not isinstance(self.size, str) and (len(self.size) != 2 or self.size[1] % 4):
            raise ValueError("size: an inception network has two levels, the second of a multiple of 4, as [8, 48]")
        if self.cache == "scratch" and self.scratch is None:
            raise ValueError("scratch: name a folder, or use cache: memory")
        return self


def load_training(path: str) -> Training:
    """Read a training file; paths in it count from its folder.

    Raises:
        UsageError: where there is no such file.
        ConfigurationError: where it does not say a training; names the field.
    """
    document = read_document(path, "a training file", "holds no settings; docs/training.md shows a training file")
    return parse_training(document, where=path, folder=Path(path).parent)


def read_document(path: str, what: str, empty: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; `what` it should be and what is `empty` about another are told.

    Raises:
        UsageError: where there is no such file.
        ConfigurationError: where it is no YAML, or no mapping.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise surroundings(error, path) or UsageError(f"{path}: {error.strerror}; name {what}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: {empty}")
    return document


def parse_training(document: dict[str, Any], *, where: str, folder: Path | None = None) -> Training:
    """Validate settings; relative paths count from `folder`.

    Raises:
        ConfigurationError: names the field that is wrong.
    """
    try:
        training = Training.model_validate(document)
    except ValidationError as error:
        mistake, first = first_mistake(error), error.errors()[0]
        if first["type"] == "extra_forbidden":
            mistake = mistake.replace(first["msg"], f"unknown field{_suggestion(str(first['loc'][-1]))}")
        raise ConfigurationError(f"{where}: {mistake}") from None
    return training if folder is None else _placed(training, folder)


def _suggestion(word: str) -> str:
    known = {name for part in (Training, AnnotatedVolume, LabelSource, Augmentation) for name in part.model_fields}
    close = get_close_matches(word, sorted(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else "; docs/training.md lists them"


def _placed(training: Training, folder: Path) -> Training:
    return training.model_copy(
        update={
            "workspace": placed(training.workspace, folder),
            "scratch": None if training.scratch is None else placed(training.scratch, folder),
            "volumes": tuple(volume.placed(folder) for volume in training.volumes),
            "validation": tuple(volume.placed(folder) for volume in training.validation),
        }
    )
