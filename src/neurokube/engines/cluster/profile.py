"""Cluster profiles: where pods run and what they get, in a YAML file of several, by name.

    profiles:
      nautilus:
        namespace: my-lab
        image: registry.example.org/neurokube:0.1.0
        resources: {cpu: 2, memory: 4Gi}
        volumes:
          - {path: /data, claim: tissue}
        stages:
          semantics: {resources: {gpu: 1, memory: 16Gi}, node_selector: {nvidia.com/gpu.product: NVIDIA-A10}}

Quantities are written as Kubernetes writes them: `500m` of a CPU, `4Gi` of memory.
"""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from ...errors import ConfigurationError
from ...networks.bundle import first_mistake

PLACES = ("neurokube-cluster.yaml", "~/.config/neurokube/cluster.yaml")
"""Where profiles are looked for, unless a file is named or NEUROKUBE_CLUSTER names one."""

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_UNITS = {"": 1, "m": Decimal("0.001"), **{u: 1000 ** (n + 1) for n, u in enumerate("kMGTP")}}
_UNITS |= {f"{u}i": 1024 ** (n + 1) for n, u in enumerate("KMGTP")}


def amount(quantity: str) -> Decimal:
    """Return a Kubernetes quantity as a number: cores, or bytes."""
    found = _QUANTITY.fullmatch(quantity)
    if found is None:
        raise ValueError(f"'{quantity}' is no quantity; write it as 500m, 2, 4Gi or 1.5Ti")
    return Decimal(found[1]) * Decimal(_UNITS[found[2] or ""])


def _quantity(value: str | int | float) -> str:
    amount(str(value))
    return str(value)


Quantity = Annotated[str, AfterValidator(_quantity), Field(coerce_numbers_to_str=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Resources(_Model):
    """What a pod asks for and may use: memory and storage in full, of the CPU what it asks for at least."""

    cpu: Quantity = Field("1", description="cores that are asked for")
    cpu_limit: Quantity | None = Field(None, description="cores at the most, where a cluster wants a limit")
    memory: Quantity = Field(
        "2Gi", description="bytes; a pod that uses more is killed, and run again with twice as much"
    )
    storage: Quantity = Field("1Gi", description="bytes of the node's disk, for logs and scratch")
    gpu: int = Field(0, ge=0, description="devices")

    def doubled(self, what: str, most: str, quota: float | None = None) -> "Resources | None":
        """Return the resources with twice the `cpu`, `memory` or `storage`, `most` at the most; None where it had that.

        `quota` is what a pod found to be its limit of processor time, whoever set it.
        """
        now, limit = amount(getattr(self, what)), amount(most)
        if what == "cpu":
            now = max(now, amount(self.cpu_limit or "0"), Decimal(quota or 0))
        if now >= limit:
            return None
        if what == "cpu":
            cores = f"{int(1000 * min(2 * now, limit))}m"
            return self.model_copy(update={"cpu": cores, "cpu_limit": cores})
        return self.model_copy(update={what: f"{int(min(2 * now, limit) / 2**20)}Mi"})


class Ceiling(_Model):
    """The most that a pod gets in the end."""

    cpu: Quantity = "8"
    memory: Quantity = "64Gi"
    storage: Quantity = "100Gi"


class Prices(_Model):
    """What an hour costs, in any currency, for `neurokube plan --calibrate`."""

    cpu: float | None = Field(None, ge=0, description="of a core")
    gpu: float | None = Field(None, ge=0, description="of a GPU")


class Mount(_Model):
    """A volume that every pod sees: a claim, or a folder of the node."""

    path: str = Field(description="where pods see it, as the paths of workflow and workspace have it")
    claim: str | None = Field(None, description="a PersistentVolumeClaim")
    host_path: str | None = Field(
        None, description="a folder of every node; not admitted where `restricted` is enforced"
    )
    read_only: bool = False
    shared: bool = Field(
        True, description="false where one node at a time can have it (ReadWriteOnce, as Ceph's RBD): see docs"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.claim is None) == (self.host_path is None):
            raise ValueError("give either 'claim' or 'host_path'")
        return self


class StageProfile(_Model):
    """What a stage may have otherwise."""

    resources: Resources | None = None
    parallelism: PositiveInt | None = Field(None, description="pods at a time, at the most")
    least: PositiveInt | None = Field(None, description="pods that are asked for at a time, at the least")
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    priority_class: str | None = None


class Profile(_Model):
    """A cluster, and what pods get on it."""

    kind: Literal["kubernetes"] = "kubernetes"
    context: str | None = Field(None, description="of the kubeconfig [default: the current one, or the pod's own]")
    namespace: str = "default"
    image: str = Field(description="image with the program, the same version as here")
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    service_account: str | None = None
    user: PositiveInt = Field(1000, description="number of the user that pods run as: one who may write the workspace")
    group: PositiveInt = Field(1000, description="number of the group that pods run as")
    resources: Resources = Resources()
    ceiling: Ceiling = Ceiling()
    prices: Prices = Prices()
    gpu_resource: str = Field("nvidia.com/gpu", description="what the cluster calls a GPU")
    indexes: PositiveInt = Field(512, description="indexes of a step's Job, at the most; an index is a batch of blocks")
    parallelism: PositiveInt = Field(512, description="pods at a time, at the most")
    least: PositiveInt = Field(
        1, description="pods that are asked for at a time, at the least, though some find no node"
    )
    grace: PositiveInt = Field(60, description="seconds that a pod gets to end its block when it has to go")
    volumes: tuple[Mount, ...] = ()
    secrets: tuple[str, ...] = Field((), description="Secrets whose entries pods see as environment variables")
    env: dict[str, str] = {}
    scratch: Quantity | None = Field(None, description="size of the scratch folder /scratch")
    scratch_medium: str = Field("", description="'' for the node's disk, Memory for its memory")
    staging: bool = Field(False, description="pods read by way of /scratch, and write behind, see docs/stores.md")
    node_selector: dict[str, str] = {}
    near: dict[str, dict[str, str]] = Field(
        {}, description="labels of the nodes that are near a store, by the path or URL that it begins with"
    )
    near_required: bool = Field(False, description="pods run near one of their stores, or not at all")
    cache: Quantity | None = Field(
        None, description="memory of a pod for what it reads again [default: 1/16 of it, 64Mi at the most]"
    )
    tolerations: tuple[dict[str, Any], ...] = ()
    priority_class: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    queue: str | None = Field(None, description="a LocalQueue of Kueue")
    queue_least: PositiveInt | None = Field(None, description="Kueue: pods with which a Job may begin")
    queue_elastic: bool = Field(False, description="Kueue: Jobs may grow and shrink while they run (elastic workloads)")
    template: str | None = Field(
        None, description="file of a Jinja2 template in place of job.yaml.j2; its text, once read"
    )
    driver_account: str = Field("neurokube-driver", description="service account of a driver in the cluster")
    driver_resources: Resources = Resources(cpu="500m")
    driver_node_selector: dict[str, str] = {}
    stages: dict[str, StageProfile] = Field({}, description="what stages have otherwise, by name or kind")

    @model_validator(mode="after")
    def _room_to_stage(self) -> Self:
        if self.staging and self.scratch is None:
            raise ValueError("staging: needs a folder /scratch; give 'scratch' its size")
        return self

    @model_validator(mode="after")
    def _below_the_ceiling(self) -> Self:
        for name in (None, *self.stages):
            told = self.resources if name is None else self.of(name).resources
            for what in ("cpu", "memory", "storage"):
                asked, most = getattr(told, what), getattr(self.ceiling, what)
                if amount(asked) > amount(most):
                    place = f"stages.{name}.resources" if name else "resources"
                    raise ValueError(
                        f"{place}.{what}: {asked} is more than the ceiling, {most}; lower it or raise 'ceiling'"
                    )
        return self

    def of(self, *names: str) -> "Profile":
        """Return the profile for a stage: what is said of it under its name, or else its kind, comes first."""
        found = next((self.stages[name] for name in names if name in self.stages), None)
        if found is None:
            return self
        own = {name: value for name, value in found if name in found.model_fields_set}
        if "resources" in own:
            told = found.resources.model_dump(include=found.resources.model_fields_set)  # type: ignore[union-attr]
            own["resources"] = self.resources.model_copy(update=told)
        return self.model_copy(update=own)


def load_profile(name: str, file: str | None = None) -> Profile:
    """Return a profile by its name, from a file or where profiles are looked for.

    Raises:
        ConfigurationError: where there is no file, no such profile, or a field is wrong.
    """
    path, document = read_profile(name, file)
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        mistake = first_mistake(error).replace("Extra inputs are not permitted", "no such field; correct or remove it")
        mistake = mistake.replace("Field required", "is missing; give it")
        raise ConfigurationError(f"{path}: profiles.{name}.{mistake}") from None
    if profile.template is not None:
        template = path.parent / Path(profile.template).expanduser()
        try:
            profile = profile.model_copy(update={"template": template.read_text()})
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: profiles.{name}.template: {template}: {error}; name a file") from None
    return profile


def read_profile(name: str, file: str | None = None) -> tuple[Path, Any]:
    """Return the file of a profile, and what it says of the profile, of whatever kind.

    Raises:
        ConfigurationError: where there is no file or no such profile.
    """
    path = _found(file)
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: there is no such file; name one with --profiles") from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({str(error).splitlines()[0]}); correct the file") from None
    profiles = document.get("profiles") if isinstance(document, dict) else None
    if not isinstance(profiles, dict) or name not in profiles:
        known = ", ".join(profiles) if isinstance(profiles, dict) else "none"
        raise ConfigurationError(
            f"{path}: no profile '{name}' below 'profiles'; name one with --profile, there are: {known}"
        )
    return path, profiles[name]


def _found(file: str | None) -> Path:
    named = file or os.environ.get("NEUROKUBE_CLUSTER")
    if named:
        return Path(named)
    for place in PLACES:
        if (path := Path(place).expanduser()).exists():
            return path
    raise ConfigurationError(
        f"no cluster profiles ({' or '.join(PLACES)}); write a file, see docs/kubernetes.md, or name one with "
        "--profiles FILE"
    )
