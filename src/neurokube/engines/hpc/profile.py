"""Profiles of jobs of a batch system, in the file of cluster profiles.

profiles:
  centre:
    kind: slurm
    partition: standard
    account: my-lab
    walltime: "04:00:00"
    jobs: 10
    workers: 32
    memory: 4Gi
    worker_init: module load python
    stages:
      semantics: {partition: gpu, jobs: 2, gpus: 4, memory: 16Gi}
"""

import re
from math import ceil
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from ...errors import ConfigurationError
from ...networks.bundle import first_mistake
from ..cluster.profile import Quantity, _Model, amount, read_profile

KINDS = {"slurm": "sbatch", "lsf": "bsub", "pbs": "qsub"}
"""Batch systems, and what submits a job to each."""

PREFIXES = {"slurm": "#SBATCH", "lsf": "#BSUB", "pbs": "#PBS"}

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d)(?::([0-5]\d))?")


def _walltime(value: Any) -> Any:
    if isinstance(value, int):
        # YAML takes 10:00:00 without quotes for the number 36000
        raise ValueError(f"a number ({value}); write it in quotes, as '04:00:00'")
    if not isinstance(value, str) or not (found := _WALLTIME.fullmatch(value)) or not any(map(int, found.groups("0"))):
        raise ValueError(f"'{value}' is no time; write it as '04:00:00' (hours, minutes, seconds) or '2-00:00:00'")
    return value


class Jobs(_Model):
    """Jobs, and the workers in each."""

    queue: str | None = Field(None, validation_alias=AliasChoices("queue", "partition"), description="or partition")
    account: str | None = Field(None, description="that is charged")
    walltime: Annotated[str, BeforeValidator(_walltime)] = Field("01:00:00", description="of a job; another follows")
    grace: PositiveInt = Field(60, description="seconds before the walltime ends in which workers end their blocks")
    jobs: PositiveInt = Field(1, description="at a time, at the most")
    nodes: PositiveInt = Field(1, description="of a job")
    workers: PositiveInt = Field(1, description="processes on a node; where it has GPUs, one for each of these")
    cores: PositiveInt = Field(1, description="of a worker")
    memory: Quantity | None = Field(None, description="of a worker, bytes [default: what the batch system gives]")
    gpus: NonNegativeInt = Field(0, description="of a node; there is one worker for each")
    exclusive: bool = Field(False, description="no one else's jobs on the nodes (slurm, lsf)")
    options: tuple[str, ...] = Field((), description="lines for the batch system, as --constraint=haswell")
    worker_init: str = Field("", description="shell commands that make the program ready, as module load")
    launcher: Literal["single", "srun", "mpiexec", "mpirun", "aprun", "jsrun"] | None = Field(
        None,
        description="what starts the workers' managers on the nodes [default: single; of several nodes srun, mpiexec]",
    )
    launcher_options: str = ""

    @property
    def seconds(self) -> int:
        """The walltime."""
        days, hours, minutes, seconds = map(int, _WALLTIME.fullmatch(self.walltime).groups("0"))  # type: ignore[union-attr]
        return 60 * (60 * (24 * days + hours) + minutes) + seconds

    @property
    def gigabytes(self) -> int | None:
        """Memory of a node in GiB, rounded up."""
        return None if self.memory is None else ceil(self.per_node * amount(self.memory) / 2**30)

    @property
    def per_node(self) -> int:
        """Workers of a node."""
        return self.gpus or self.workers

    @property
    def slots(self) -> int:
        """Workers of all jobs together."""
        return self.jobs * self.nodes * self.per_node

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.seconds <= self.grace:
            raise ValueError(f"a walltime of {self.walltime} is over before the grace of {self.grace} s; ask for more")
        return self


class JobProfile(Jobs):
    """A batch system, and what jobs get of it."""

    kind: Literal["slurm", "lsf", "pbs"]
    address: str | None = Field(
        None, description="name or IP by which nodes reach the driver [default: try all it has]"
    )
    interface: str | None = Field(None, description="of the network on which nodes reach the driver, as ib0")
    ports: tuple[PositiveInt, PositiveInt] = Field((54000, 55000), description="that nodes reach the driver by")
    shared: str | None = Field(None, description="folder that driver and nodes see [default: the run's own]")
    stages: dict[str, dict[str, Any]] = Field({}, description="what stages have otherwise, by name")

    @model_validator(mode="after")
    def _stages(self) -> Self:
        for name in self.stages:
            try:
                self.of(name)
            except ValidationError as error:
                raise ValueError(f"stages.{name}.{first_mistake(error)}") from None
        return self

    def of(self, stage: str) -> Jobs:
        """Return the jobs of a stage: what is said of it, and the rest as all have."""
        told = {name: getattr(self, name) for name in Jobs.model_fields if name in self.model_fields_set}
        own = self.stages.get(stage, {})
        if "partition" in own:
            told.pop("queue", None)
        return Jobs.model_validate(told | own)


def load_job_profile(name: str, file: str | None = None) -> JobProfile:
    """Return a profile of jobs by its name, from a file or where profiles are looked for.

    Raises:
        ConfigurationError: where there is no file, no such profile, or a field is wrong.
    """
    path, document = read_profile(name, file)
    try:
        return JobProfile.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: profiles.{name}.{first_mistake(error)}") from None
