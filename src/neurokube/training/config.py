"""The training file: what to learn from, and how."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
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
from ..networks.bundle import Name, first_mistake
from ..volumes.store import placed

Share = Annotated[float, Field(ge=0, le=1)]
Modality = Literal["sstem", "sbf-sem", "fib-sem"]


def _parsed(region: str) -> str:
    try:
        parse_region(region)
    except UsageError as error:
        # YAML cuts {region: 0:4,0:8,0:8} at the commas
        quotes = "" if "," in region else "; within braces, in quotes"
        raise ValueError(f"{error}{quotes}") from None
    return region


Region = Annotated[str, AfterValidator(_parsed)]


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


class ImageVolume(_Strict):
    """An image, or a part of it."""

    image: str
    region: Region | None = Field(None, description="Z0:Z1,Y0:Y1,X0:X1 in voxels of the image, the part to use")
    weight: PositiveFloat = Field(1.0, description="how often windows come from here")

    def placed(self, folder: Path) -> Self:
        """Return the same with its path, which counts from `folder`, as it is from anywhere."""
        return self.model_copy(update={"image": placed(self.image, folder)})


class AnnotatedVolume(ImageVolume):
    """An image and the truth of some of its labels; a label that is not named is unknown there."""

    channels: dict[str, str] = Field(
        {}, description="further images of the same voxels that the network sees, as light microscopy, by name"
    )
    truth: dict[str, LabelSource] = Field(min_length=1)

    @field_validator("truth", mode="before")
    @classmethod
    def _short(cls, truth: Any) -> Any:
        if not isinstance(truth, dict):
            return truth
        return {name: {"volume": source} if isinstance(source, str) else source for name, source in truth.items()}

    def placed(self, folder: Path) -> Self:
        """Return the same with its paths, which count from `folder`, as they are from anywhere."""
        truth = {name: source.placed(folder) for name, source in self.truth.items()}
        channels = {name: placed(path, folder) for name, path in self.channels.items()}
        return super().placed(folder).model_copy(update={"truth": truth, "channels": channels})


class GraphVolume(_Strict):
    """A fragment graph, and the bodies that its fragments are parts of."""

    run: str | None = Field(None, description="folder of a run whose graph is done")
    workflow: str | None = Field(None, description="or a workflow file: what its graph needs is computed in its run")
    graph: str | None = Field(None, description="the graph stage [default: the only one]")
    truth: str = Field(description="label volume of bodies, 0 where there is none; its offset says where it lies")
    region: Region | None = Field(
        None, description="Z0:Z1,Y0:Y1,X0:X1 in voxels: the part of the run to use, or of the workflow to compute"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.run is None) == (self.workflow is None):
            raise ValueError("give either 'run', the folder of a run, or 'workflow', a file")
        return self

    @property
    def path(self) -> str:
        """The run or the workflow."""
        return self.run or self.workflow or ""

    def placed(self, folder: Path) -> Self:
        """Return the same with its paths, which count from `folder`, as they are from anywhere."""
        paths = {"run": self.run, "workflow": self.workflow, "truth": self.truth}
        return self.model_copy(update={f: placed(path, folder) for f, path in paths.items() if path is not None})


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


class Settings(_Strict):
    """What trainings of every task have in common."""

    task: str
    name: Name
    workspace: str = Field("models", description="what is trained is written to <workspace>/<name>")
    modality: Modality | None = Field(None, description="how the images were taken")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: PositiveInt | None = Field(None, description="processor threads [default: all]")
    licence: str | None = Field(None, description="licence of the data, kept in the model's card")
    description: str = ""

    def placed(self, folder: Path) -> Self:
        """Return the same with its paths, which count from `folder`, as they are from anywhere."""
        changed: dict[str, Any] = {"workspace": placed(self.workspace, folder)}
        for field, value in self:
            if isinstance(value, tuple) and value and isinstance(value[0], ImageVolume | GraphVolume):
                changed[field] = tuple(volume.placed(folder) for volume in value)
        return self.model_copy(update=changed)


class Schedule(Settings):
    """What trainings of networks have in common: a length, a machine."""

    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None, description="nm (z, y, x) the network sees [default: that of the model or the first volume]"
    )
    batch: PositiveInt = 2
    steps: PositiveInt = 2000
    interval: PositiveInt = Field(100, description="steps between checkpoints, validations and pictures")
    patience: PositiveInt | None = Field(None, description="intervals without a better score that end the training")
    learning_rate: PositiveFloat | None = Field(None, description="at its highest [default: 3e-3, 1e-3 from a model]")
    weight_decay: NonNegativeFloat = 0.01
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="decay of the average of the weights; 0: none"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    devices: PositiveInt | Literal["auto"] = "auto"
    loaders: Annotated[int, Field(ge=0)] = Field(
        0, description="processes that prepare windows; 0: none beside the training"
    )
    loggers: tuple[Literal["tensorboard", "mlflow"], ...] = ("tensorboard",)


class Training(Schedule):
    """The training of a network that labels structures, `task: semantics`."""

    task: Literal["semantics"] = "semantics"
    volumes: tuple[AnnotatedVolume, ...] = Field(min_length=1)
    validation: tuple[AnnotatedVolume, ...] = Field((), description="to choose thresholds and the best step")
    labels: tuple[str, ...] = Field((), description="what the network predicts [default: all that volumes name]")
    network: Literal["unet", "inception"] | None = Field(
        None, description="kind of network [default: that of the model, or unet]"
    )
    size: Literal["small", "medium", "large"] | tuple[PositiveInt, ...] = Field(
        "small", description="features a level; small and medium suit a CPU, large a GPU"
    )
    window: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(None, description="voxels (z, y, x)")
    balance: Share = Field(0.5, description="share of windows placed on a label, each label as often as another")
    positive_weight: PositiveFloat = Field(3.0, description="largest weight of a rare label's voxels")
    dice: NonNegativeFloat = Field(1.0, description="weight of the Dice loss beside cross-entropy")
    augmentation: Augmentation = Augmentation()
    cache: Literal["memory", "scratch"] = Field("memory", description="where images and truth are kept while training")
    scratch: str | None = Field(None, description="folder on a fast disk, with cache: scratch")

    @property
    def all_labels(self) -> tuple[str, ...]:
        """What the network predicts."""
        return self.labels or tuple(dict.fromkeys(name for volume in self.volumes for name in volume.truth))

    @property
    def channels(self) -> tuple[str, ...]:
        """What the network sees beside the image, in order: by name."""
        return tuple(sorted(self.volumes[0].channels))

    def placed(self, folder: Path) -> Self:
        """Return the same with its paths, which count from `folder`, as they are from anywhere."""
        scratch = None if self.scratch is None else placed(self.scratch, folder)
        return super().placed(folder).model_copy(update={"scratch": scratch})

    @model_validator(mode="after")
    def _labels_are_there(self) -> Self:
        named = {name for volume in self.volumes for name in volume.truth}
        if missing := [name for name in self.labels if name not in named]:
            raise ValueError(
                f"labels: no volume has truth for {', '.join(missing)}; there is {', '.join(sorted(named))}"
            )
        for volume in (*self.volumes, *self.validation):
            if odd := sorted(volume.channels.keys() ^ set(self.channels)):
                raise ValueError(f"channels: not all volumes name '{odd[0]}'; name it for all of them, or for none")
        if "image" in self.channels:
            raise ValueError("channels: 'image' is what the image itself is called; give it another name")
        if self.network == "inception" and not isinstance(self.size, str) and (len(self.size) != 2 or self.size[1] % 4):
            raise ValueError("size: an inception network has two levels, the second of a multiple of 4, as [8, 48]")
        if self.cache == "scratch" and self.scratch is None:
            raise ValueError("scratch: name a folder, or use cache: memory")
        return self


class Permuting(_Strict):
    """What is done to the windows of a GAN: grey values are what it learns."""

    permutations: bool = Field(True, description="flips, and turns where pixels are square")


class ImageAugmentation(Permuting):
    """What is done to planes, and to what they are to be restored to alike."""

    contrast: NonNegativeFloat = Field(0.1, description="deviation of gain (log) and of brightness (deviations)")
    noise: NonNegativeFloat = Field(
        0.0, description="largest deviation of noise in what goes in, in deviations of the image"
    )


class Adversarial(_Strict):
    """Weights of the losses of a CycleGAN and what its discriminators are like; as Zhu et al., ICCV 2017."""

    adversarial: NonNegativeFloat = Field(1.0, description="weight of the discriminators' verdict, least squares")
    cycle: NonNegativeFloat = Field(10.0, description="weight of the difference after there and back")
    identity: NonNegativeFloat = Field(5.0, description="weight of keeping what is to be kept")
    buffer: Annotated[int, Field(ge=0)] = Field(50, description="earlier images that discriminators are shown again")
    features: PositiveInt = Field(64, description="of a discriminator's first layer")
    rate: PositiveFloat = Field(1.0, description="learning rate of the discriminators, in that of the generators")


class ImageTraining(Schedule):
    """What trainings of networks that make images of images have in common."""

    volumes: tuple[ImageVolume, ...] = Field(min_length=1)
    features: PositiveInt = Field(32, description="of each layer of the network")
    blocks: PositiveInt = Field(8, description="residual blocks, of two convolutions each")
    batch: PositiveInt = 8
    learning_rate: PositiveFloat | None = Field(
        None, description="at its highest [default: 1e-3, 3e-4 from a model; 2e-4 of a GAN]"
    )
    weight_decay: NonNegativeFloat = 0.0
    gan: Adversarial = Adversarial()

    def _on_one_device(self) -> None:
        if self.devices not in (1, "auto"):
            raise ValueError("devices: a GAN trains on one, since its buffer of images is; leave it out")


class Superresolution(ImageTraining):
    """The training of a network that makes sections between sections, `task: superresolution`."""

    task: Literal["superresolution"]
    factor: Annotated[int, Field(ge=2, le=16)] = Field(description="sections that come of one")
    method: Literal["self-supervised", "cyclegan"] = Field(
        "self-supervised",
        description="restore sections that were taken out of turned planes of the volume; or unpaired, as a CycleGAN",
    )
    degradation: Literal["subsample", "average"] | None = Field(
        None,
        description="how a thick section comes of thin ones: one of them (FIB-SEM, SBF-SEM: a block face shows little "
        "of its depth), or their mean (ssTEM: electrons go through) [default: by modality, else by voxel size]",
    )
    fine: tuple[ImageVolume, ...] = Field(
        (), description="with cyclegan: volumes whose planes show what sections should look like [default: volumes]"
    )
    validation: tuple[ImageVolume, ...] = Field(
        (), description="parts whose planes, their sections taken out and restored, tell how good the network is"
    )
    window: tuple[Annotated[int, Field(ge=4)], Annotated[int, Field(ge=4)]] | None = Field(
        None, description="sections that go in, and pixels across [default: 32, 64]"
    )
    neighbours: bool | None = Field(
        None,
        description="see what is beside a plane too, in the self-supervised method [default: where sections are at "
        "most 4 pixels thick, since others tell little]",
    )
    augmentation: ImageAugmentation = ImageAugmentation()

    @model_validator(mode="after")
    def _of_a_gan(self) -> Self:
        if self.method != "cyclegan" and (odd := sorted({"gan", "fine"} & self.model_fields_set)):
            raise ValueError(f"{odd[0]}: only a CycleGAN uses it; write method: cyclegan, or leave it out")
        grey = self.augmentation.model_fields_set - {"permutations"}
        if self.method == "cyclegan" and (odd := sorted(grey)):
            raise ValueError(f"augmentation.{odd[0]}: grey values are what a CycleGAN learns; leave it out")
        if self.method == "cyclegan":
            if self.neighbours:
                raise ValueError("neighbours: a CycleGAN sees single planes; leave it out")
            self._on_one_device()
        return self


class Translation(ImageTraining):
    """The training of a network that makes one volume look like another, `task: translation`."""

    task: Literal["translation"]
    targets: tuple[ImageVolume, ...] = Field(min_length=1, description="what the volumes are to look like")
    batch: PositiveInt = 1
    window: tuple[PositiveInt, Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] | None = Field(
        None, description="voxels (z, y, x) [default: that of the segmentation's model, or 1, 128, 128]"
    )
    augmentation: Permuting = Permuting()
    segmentation: str | None = Field(
        None, description="model of the targets' structures, which must find the same after there and back"
    )
    segmentation_weight: PositiveFloat = Field(1.0, description="weight of that")

    @model_validator(mode="after")
    def _of_a_gan(self) -> Self:
        self._on_one_device()
        return self

    def placed(self, folder: Path) -> Self:
        """Return the same with its paths, which count from `folder`, as they are from anywhere."""
        model = self.segmentation
        if model is not None and (folder / model).exists():
            # else it is the name of an installed one
            model = placed(model, folder)
        return super().placed(folder).model_copy(update={"segmentation": model})


class ForestTraining(Settings):
    """The training of a forest that tells which edges of a fragment graph are boundaries, `task: forest`."""

    task: Literal["forest"]
    volumes: tuple[GraphVolume, ...] = Field(min_length=1)
    validation: tuple[GraphVolume, ...] = Field((), description="other parts, to tell how good the forest is")
    channels: tuple[str, ...] | None = Field(
        None, description="channels and filters of the graph to learn from, by name [default: all of the first]"
    )
    smallest: Annotated[int, Field(ge=0)] = Field(0, description="bodies of fewer voxels are noise: as if 0")
    share: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.75, description="of a fragment's voxels that must lie in one body; fragments with less are left out"
    )
    edges: Annotated[int, Field(ge=2)] = Field(
        200_000, description="edges to learn from at most, half of them boundaries where there are as many"
    )
    trees: PositiveInt = 100
    leaf: PositiveInt = Field(10, description="edges that a leaf of a tree was made of at least")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if self.channels is not None and len(set(self.channels)) != len(self.channels):
            raise ValueError("channels: a name is there twice; leave one out")
        return self


AnyTraining = Training | Superresolution | Translation
"""What trains a network."""
_TASKS: dict[str, type[AnyTraining] | type[ForestTraining]] = {
    "semantics": Training,
    "superresolution": Superresolution,
    "translation": Translation,
    "forest": ForestTraining,
}


def load_training(path: str) -> AnyTraining | ForestTraining:
    """Read a training file; paths in it count from its folder.

    Raises:
        UsageError: where there is no such file.
        ConfigurationError: where it does not say a training; names the field.
    """
    document = read_document(path, "a training file", "holds no settings; docs/training.md shows a training file")
    return parse_training(document, where=path, folder=Path(path).parent)


def read_document(path: str, what: str, empty: str, loader: type[yaml.BaseLoader] | None = None) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; `what` it should be and what is `empty` about another are told.

    Values are plain, or as another `loader` of YAML than the usual makes them.

    Raises:
        UsageError: where there is no such file.
        ConfigurationError: where it is no YAML, or no mapping.
    """
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), loader or yaml.SafeLoader)
    except OSError as error:
        raise surroundings(error, path) or UsageError(f"{path}: {error.strerror}; name {what}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: {empty}")
    return document


def parse_training(document: dict[str, Any], *, where: str, folder: Path | None = None) -> AnyTraining | ForestTraining:
    """Validate settings; relative paths count from `folder`.

    Raises:
        ConfigurationError: names the field that is wrong.
    """
    task = document.get("task", "semantics")
    kind = _TASKS.get(task) if isinstance(task, str) else None
    if kind is None:
        raise ConfigurationError(f"{where}: task: must be {', '.join(_TASKS)}, not {task!r}")
    try:
        training = kind.model_validate(document)
    except ValidationError as error:
        mistake, first = first_mistake(error), error.errors()[0]
        if first["type"] == "extra_forbidden":
            mistake = mistake.replace(first["msg"], f"unknown field{_suggestion(str(first['loc'][-1]), kind)}")
        elif first["type"] == "missing":
            mistake = mistake.replace(first["msg"], "this field is missing; add it")
        raise ConfigurationError(f"{where}: {mistake}") from None
    return training if folder is None else training.placed(folder)


def _suggestion(word: str, kind: type[Settings]) -> str:
    parts: dict[type[Settings], tuple[type[BaseModel], ...]] = {
        Training: (Training, AnnotatedVolume, LabelSource, Augmentation),
        Superresolution: (Superresolution, ImageVolume, ImageAugmentation, Adversarial),
        Translation: (Translation, ImageVolume, ImageAugmentation, Adversarial),
        ForestTraining: (ForestTraining, GraphVolume),
    }
    close = get_close_matches(word, sorted({name for part in parts[kind] for name in part.model_fields}), n=1)
    return f"; did you mean '{close[0]}'?" if close else "; docs/training.md lists them"
