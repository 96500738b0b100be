"""The workflow file: YAML, checked by pydantic, every mistake named by file and field."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic import WrapValidator as Wrap

from ..blocks import Vector
from ..errors import ConfigurationError
from ..stages import STAGES, Stage


def _one_of_the_stages(value: Any, handler: ValidatorFunctionWrapHandler) -> Stage:
    """Build the stage that `stage:` names; the stage's own name stands for it where it is left out."""
    if isinstance(value, Stage):
        return value
    settings = dict(value)
    kind = settings.pop("stage")
    if kind not in STAGES:
        raise ValueError(f"unknown stage '{kind}'{_suggestion(kind, STAGES)}")
    return STAGES[kind].model_validate(settings)


def _as_written(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.kind, **stage.model_dump(mode="json")}


AnyStage = Annotated[Stage, Wrap(_one_of_the_stages), PlainSerializer(_as_written)]


class InputVolume(BaseModel):
    """A volume that the workflow starts from, in a store of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="folder or URL of an OME-NGFF volume; relative to the workflow file")


class Failures(BaseModel):
    """How much may go wrong before a stage ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempts: int = Field(3, ge=1, description="how often a block is tried before it is quarantined")
    limit: int = Field(20, ge=1, description="quarantined blocks at which a stage ends early")


class Workflow(BaseModel):
    """What is to be computed: input volumes, and a graph of stages that name what they read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder")
    workspace: str = Field("runs", description="folder or URL that holds runs; relative to the workflow file")
    inputs: dict[str, InputVolume] = Field(default_factory=dict)
    stages: dict[str, AnyStage] = Field(min_length=1)
    block: Vector | None = Field(None, description="voxels (z, y, x) a worker takes at a time, for every stage")
    failures: Failures = Field(default_factory=Failures)

    def order(self) -> list[str]:
        """Return the stages' names so that each comes after what it reads.

        Raises:
            ConfigurationError: for a name that is not there, or a cycle.
        """
        graph: dict[str, set[str]] = {}
        known = [*self.inputs, *self.stages]
        for name, stage in self.stages.items():
            graph[name] = set()
            for role, reference in stage.references().items():
                source = reference.split(".")[0]
                if source not in known:
                    raise ConfigurationError(
                        f"stages.{name}.{role}: there is no input or stage '{source}'{_suggestion(source, known)}"
                    )
                if source in self.stages:
                    graph[name].add(source)
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " reads ".join(reversed(error.args[1]))
            raise ConfigurationError(f"stages: they read each other in a circle: {circle}; break it") from None


def load_workflow(path: str) -> Workflow:
    """Read a workflow file; relative paths in it count from its folder.

    Raises:
        ConfigurationError: for anything wrong with it, in one line.
    """
    file = Path(path)
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; write one with 'neurokube init VOLUME'") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not a text file; give the workflow's YAML file") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse_workflow(document, where=path, folder=file.parent)


def parse_workflow(document: Any, *, where: str = "workflow", folder: Path | None = None) -> Workflow:
    """Check a workflow given as plain values; see `load_workflow`."""
    if not isinstance(document, Mapping):
        raise ConfigurationError(f"{where}: a workflow is a mapping with the fields {', '.join(Workflow.model_fields)}")
    document = dict(document)
    if isinstance(stages := document.get("stages"), Mapping):
        # the empty stage, and the stage named by its own name
        document["stages"] = {
            name: {"stage": name, **(settings or {})} if isinstance(settings, Mapping | None) else settings
            for name, settings in stages.items()
        }
    try:
        workflow = Workflow.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {describe(error)}") from None
    try:
        workflow.order()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if folder is None:
        return workflow
    inputs = {name: InputVolume(path=_resolved(volume.path, folder)) for name, volume in workflow.inputs.items()}
    return workflow.model_copy(update={"inputs": inputs, "workspace": _resolved(workflow.workspace, folder)})


def describe(error: ValidationError) -> str:
    """Return the first mistake that pydantic found, as `field: what; remedy`, and how many more there are."""
    first, *rest = error.errors()
    if isinstance(inner := first.get("ctx", {}).get("error"), ValidationError):
        nested, *more = inner.errors()
        first, rest = {**nested, "loc": (*first["loc"], *nested["loc"])}, rest + more
    field = ".".join(str(part) for part in first["loc"])
    message = re.sub(r"^Value error, ", "", first["msg"])
    message = message[0].lower() + message[1:]
    if first["type"] == "extra_forbidden":
        message = f"unknown field{_suggestion(str(first['loc'][-1]), _siblings(first['loc']))}"
    elif first["type"] == "missing":
        message = "this field is missing; add it"
    elif "input" in first and not isinstance(first["input"], Mapping):
        message += f" (it is {first['input']!r})"
    return f"{field}: {message}" + (f" (and {len(rest)} more)" if rest else "")


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    if location[0] == "stages" and len(location) > 2:
        return sorted({f for stage in STAGES.values() for f in stage.model_fields})
    models: dict[int, type[BaseModel]] = {1: Workflow, 2: Failures}
    return list(models.get(len(location), InputVolume).model_fields)


def _suggestion(word: str, known: Any) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _resolved(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / Path(path).expanduser()).absolute())


class _UniqueKeys(yaml.SafeLoader):
    """A loader to which a key that is given twice is a mistake, not an overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
