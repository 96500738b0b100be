"""The file of truths: annotated volumes to test models on, and others to choose thresholds by."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...blocks import Box, parse_region
from ...errors import ConfigurationError
from ...networks.bundle import first_mistake
from ...training.config import AnnotatedVolume, read_document
from ...training.truth import Annotated, load
from ...volumes import open_volume

EXAMPLE = "lines 'test:' and '  - {image: image.zarr, truth: {membranes: membranes.zarr}}'"


class TruthFile(BaseModel):
    """What `neurokube evaluate FILE --models` tests on; volumes are named as in a training file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: tuple[AnnotatedVolume, ...] = Field(min_length=1, description="volumes that models are scored on")
    validation: tuple[AnnotatedVolume, ...] = Field((), description="volumes by which thresholds are chosen")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the test volumes have the truth of, in the order of the file."""
        return tuple(dict.fromkeys(name for volume in self.test for name in volume.truth))


def load_truth(path: str) -> TruthFile:
    """Read a file of truths; paths in it count from its folder.

    Raises:
        UsageError: where there is no such file.
        ConfigurationError: where it says something else, or tests on what thresholds are chosen by.
    """
    document = read_document(path, "a file of truths", f"names no volumes; write {EXAMPLE}")
    try:
        parsed = TruthFile.model_validate(document)
    except ValidationError as error:
        mistake = first_mistake(error).replace("Extra inputs are not permitted", "unknown field; correct or remove it")
        raise ConfigurationError(
            f"{path}: {mistake.replace('Field required', f'is missing; write {EXAMPLE}')}"
        ) from None
    folder = Path(path).parent
    found = TruthFile(
        test=tuple(volume.placed(folder) for volume in parsed.test),
        validation=tuple(volume.placed(folder) for volume in parsed.validation),
    )
    _refuse_shared_voxels(found, path)
    return found


def region_of(entry: AnnotatedVolume) -> Box:
    """Return the voxels of the image that an entry is about."""
    return open_volume(entry.image).spec.box if entry.region is None else parse_region(entry.region)


def loaded(entry: AnnotatedVolume, labels: Sequence[str]) -> Annotated:
    """Read an annotated volume, in the image's own voxels.

    Raises:
        DataError: where image and truth do not fit, or a truth is empty.
    """
    return load(entry, labels, open_volume(entry.image).spec.voxel_size)


def _refuse_shared_voxels(truth: TruthFile, path: str) -> None:
    for (k, test), (n, validation) in product(enumerate(truth.test), enumerate(truth.validation)):
        if _same(test.image, validation.image) and region_of(test).clip(region_of(validation)).size:
            raise ConfigurationError(
                f"{path}: test.{k} ({region_of(test)}) and validation.{n} ({region_of(validation)}) share voxels of "
                f"{test.image}; thresholds must not come from what is tested: choose regions apart"
            )


def _same(image: str, other: str) -> bool:
    return image == other or ("://" not in image + other and Path(image).resolve() == Path(other).resolve())
