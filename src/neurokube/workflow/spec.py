"""What a workflow says, checked by pydantic, every mistake named by file and field."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic import WrapValidator as Wrap

from ..errors import ConfigurationError
from ..stages import STAGES, Stage
from ..stages.base import Extent
from ..volumes.affine import Affine
from ..volumes.store import join, placed

_A_MAPPING = "must be a mapping, lines of 'name: value'"


def _one_of_the_stages(value: Any, handler: ValidatorFunctionWrapHandler) -> Stage:
    """Build the stage that `stage:` names; the stage's own name stands for it where it is left out."""
    if isinstance(value, Stage):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(_A_MAPPING)
    settings = dict(value)
    kind = settings.pop("stage")
    if not isinstance(kind, str) or kind not in STAGES:
        raise ValueError(f"unknown stage '{kind}'{suggestion(str(kind), STAGES)}")
    return STAGES[kind].model_validate(settings)


def _as_written(stage: Stage) -> dict[str, Any]:
    return {"stage": stage.kind, **stage.model_dump(mode="json")}


AnyStage = Annotated[Stage, Wrap(_one_of_the_stages), PlainSerializer(_as_written)]

# a stage's name is a folder that the run may empty, and a dot sets off an output: `stage.output`
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class InputVolume(BaseModel):
    """A volume that the workflow starts from, in a store of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="folder or URL of an OME-NGFF volume; relative to the workflow file")
    affine: Affine | None = Field(None, description="from its nanometres to the workspace's: a file, or a matrix")

    def placed(self, folder: Path) -> Self:
        """Return the same with its path, which counts from `folder`, as it is from anywhere, and its affine read.

        Raises:
            ConfigurationError: where the affine cannot be.
        """
        affine = None if self.affine is None else self.affine.loaded(folder)
        return self.model_copy(update={"path": placed(self.path, folder), "affine": affine})


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
    inputs: dict[Name, InputVolume] = Field(default_factory=dict)
    stores: dict[Name, str] = Field(
        default_factory=dict, description="further folders or URLs by name, for stages that are not to lie in the run"
    )
    stages: dict[Name, AnyStage] = Field(min_length=1)
    block: Extent | None = Field(None, description="voxels (z, y, x) a worker takes at a time, for every stage")
    failures: Failures = Field(default_factory=Failures)

    def place(self, stage: str, run_url: str) -> str:
        """Return where all that belongs to a stage of a run lies: below the run, or its name in the stage's store."""
        store = self.stages[stage].store
        return join(
            run_url if store is None else join(self.stores[store], run_url.rstrip("/").rpartition("/")[2]), stage
        )

    def in_one_place(self) -> Self:
        """Return the workflow all of whose stages lie in the run."""
        stages = {name: stage.model_copy(update={"store": None}) for name, stage in self.stages.items()}
        return self.model_copy(update={"stores": {}, "stages": stages})

    def order(self) -> list[str]:
        """Return the stages' names so that each comes after what it reads.

        Raises:
            ConfigurationError: for a name that is not there or is given twice, or a cycle.
        """
        if both := self.inputs.keys() & self.stages.keys():
            raise ConfigurationError(f"inputs.{min(both)}: a stage has this name too; give one of them another")
        graph: dict[str, set[str]] = {}
        known = [*self.inputs, *self.stages]
        for name, stage in self.stages.items():
            graph[name] = set()
            for role, reference in stage.references().items():
                source = reference.split(".")[0]
                if source not in known:
                    raise ConfigurationError(
                        f"stages.{name}.{role}: there is no input or stage '{source}'{suggestion(source, known)}"
                    )
                if source in self.stages:
                    graph[name].add(source)
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " reads ".join(reversed(error.args[1]))
            raise ConfigurationError(f"stages: they read each other in a circle: {circle}; break it") from None

    def upto(self, name: str) -> Self:
        """Return the part of the workflow that a stage needs, itself included."""
        needed, waiting = set(), [name]
        while waiting:
            needed.add(here := waiting.pop())
            if here in self.stages:
                waiting += [reference.split(".")[0] for reference in self.stages[here].references().values()]

        def kept(every: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in every.items() if key in needed}

        return self.model_copy(update={"inputs": kept(self.inputs), "stages": kept(self.stages)})

    def followed(self) -> Self:
        """Return the workflow whose stages took over what they take from those that read them.

        Raises:
            ConfigurationError: where these do not agree.
        """
        stages = {}
        for name, stage in self.stages.items():
            readers = [
                reader
                for reader in self.stages.values()
                if name in {reference.partition(".")[0] for reference in reader.references().values()}
            ]
            try:
                stages[name] = stage.following(readers)
            except ConfigurationError as error:
                raise ConfigurationError(f"stages.{name}.{error}") from None
        return self.model_copy(update={"stages": stages})


def parse_workflow(document: Any, *, where: str = "workflow", folder: Path | None = None) -> Workflow:
    """Check a workflow given as plain values; relative paths in it count from the folder.

    Raises:
        ConfigurationError: for anything wrong with it, in one line, which begins with `where`.
    """
    if not isinstance(document, Mapping):
        raise ConfigurationError(
            f"{where}: no workflow in it; it needs the fields name, inputs and stages: "
            "write one with 'neurokube init VOLUME'"
        )
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
        raise ConfigurationError(f"{where}: {_describe(error.errors(), document)}") from None
    try:
        _check_stores(workflow)
        workflow.order()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if folder is None:
        return workflow
    inputs = {}
    for name, volume in workflow.inputs.items():
        try:
            inputs[name] = volume.placed(folder)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: inputs.{name}.affine: {error}") from None
    stages = {name: stage.placed(folder) for name, stage in workflow.stages.items()}
    stores = {name: placed(store, folder) for name, store in workflow.stores.items()}
    workspace = placed(workflow.workspace, folder)
    update = {"inputs": inputs, "stores": stores, "stages": stages, "workspace": workspace}
    return workflow.model_copy(update=update)


def _check_stores(workflow: Workflow) -> None:
    """Check that stages name stores that are there, and that no store is given twice."""
    for name, stage in workflow.stages.items():
        if stage.store is not None and stage.store not in workflow.stores:
            remedy = suggestion(stage.store, workflow.stores) if workflow.stores else "; add it below 'stores'"
            raise ConfigurationError(f"stages.{name}.store: there is no store '{stage.store}'{remedy}")
    known: dict[str, str] = {}
    for name, store in workflow.stores.items():
        place = store.rstrip("/") if "://" in store else str(Path(store).expanduser().resolve())
        if (other := known.setdefault(place, name)) != name:
            raise ConfigurationError(f"stores.{name}: is the same place as stores.{other}, {store}; name it once")


def _describe(mistakes: list[Any], document: Mapping[str, Any]) -> str:
    """Return the first mistake that pydantic found, as `field: what; remedy`, and how many more there are.

    An unknown field comes first: it is often what a missing one was meant to be.
    """
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        message = f"unknown field{suggestion(str(location[-1]), _fields(location, document))}"
    elif first["type"] == "missing" and isinstance(location[-1], int):
        location = location[:-1]
        message = f"needs {1 + max(m['loc'][-1] for m in mistakes if m['loc'][:-1] == location)} values"
    else:
        message = plain(first)
    field = ".".join(" ".join(str(part).splitlines()) for part in location if part != "[key]")
    return f"{field}: {message}" + (f" (and {len(mistakes) - 1} more)" if mistakes[1:] else "")


_WORDING = {
    "missing": "this field is missing; add it",
    "dict_type": _A_MAPPING,
    "model_type": _A_MAPPING,
    "tuple_type": "must be a list, as [1, 2, 3]",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text; put it in quotes",
    "string_pattern_mismatch": "use letters, digits, '_' and '-' only",
    "too_short": "must not be empty; it needs at least {min_length}",
    "too_long": "takes at most {max_length} values",
}


def plain(mistake: Any) -> str:
    """Return pydantic's words as a person would say them, with the value that was given."""
    words = _WORDING.get(mistake["type"], mistake["msg"]).format(**mistake.get("ctx", {}))
    words = re.sub(r"^(Value error, |Input should (?=be))", "", words)
    words = re.sub(r"^be ", "must be ", words)
    value = mistake["input"]
    if isinstance(value, Mapping):
        return words
    given = "empty" if value is None else repr(value)
    return f"{words} (it is {given if len(given) <= 60 else given[:57] + '...'})"


def _fields(location: tuple[int | str, ...], document: Mapping[str, Any]) -> list[str]:
    """Return the fields that can be given where the last part of a location was."""
    model: type[BaseModel] = Workflow
    if location[0] == "stages":
        model, location = STAGES[document["stages"][location[1]]["stage"]], location[2:]
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        parts = (annotation, *get_args(annotation))
        model = next((m for m in parts if isinstance(m, type) and issubclass(m, BaseModel)), model)
    return list(model.model_fields)


def suggestion(word: str, known: Any) -> str:
    """Return the known word that is meant, or all of them, as the end of a sentence."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"
