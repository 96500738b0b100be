"""Trials as the indexes of a Job, whose pods come and go."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..engines.base import run_id
from ..engines.cluster import Api, Lease, Refused
from ..engines.cluster.api import Manifest
from ..engines.cluster.control import end_of, last_of, lease_name, worker_end
from ..engines.cluster.errand import create, failure, follow
from ..engines.cluster.manifest import RUN
from ..errors import Drained, NeuroKubeError, TryAgainError
from ..volumes import Store
from .remote import ATTEMPTS, Cluster, check_here, check_reach, reachable_model, wait_for_pods
from .spec import Sweep
from .sweeper import Swept, sweep
from .trials import Trials


def sweep_there(
    request: Sweep,
    cluster: Cluster,
    *,
    stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
    quiet: bool = False,
    after: Callable[[Swept], None] = lambda swept: None,
) -> Swept:
    """Do what `sweep` does, by pods of a cluster.

    Raises:
        ConfigurationError, DataError: where pods do not see what they need, or something does not fit.
        otherwise: as `sweep`.
    """
    folder = str(request.folder)
    check_reach(cluster.profile, {"workspace": folder})
    check_here(request.base, cluster.profile)
    request = replace(request, model=reachable_model(request.model, cluster.profile, "from"))
    with cluster.connect() as engine:
        api = engine.api
        try:
            with Lease(api, lease_name(folder), {RUN: run_id(folder)}, sleep=cluster.sleep):
                trials = ClusterTrials(cluster, api)
                return sweep(request, trials, stop=stop, overwrite=overwrite, quiet=quiet, after=after)
        except Refused as refused:
            raise TryAgainError(f"{folder}: {refused}; run again to go on") from None


class ClusterTrials:
    """Makes trials by pods; the Job starts again what is evicted, and what lacks memory gets twice as much."""

    def __init__(self, cluster: Cluster, api: Api) -> None:
        self._cluster, self._api = cluster, api
        self._resources = cluster.profile.resources

    def means(self, sweep: Sweep) -> dict[str, Any]:
        """Return what each training may use: what its pod has."""
        devices = sweep.devices(max(1, self._resources.gpu))
        return {"threads": sweep.base.threads or self._cluster.threads, "devices": devices}

    def make(
        self, trials: Trials, numbers: Sequence[int], threads: int, stop: Callable[[], bool], look: Callable[[], None]
    ) -> None:
        """Make trials until each has a result.

        Raises:
            Drained: where `stop` asked to; pods kept checkpoints.
            NeuroKubeError: where pods cannot start, or the surroundings failed.
        """
        deaths = Counter[int]()
        self._take_up(trials, stop, look)
        while left := trials.open(numbers):
            end, pods = self._job(trials, left, None, stop, look)
            self._weigh(trials, left, end, pods, deaths)

    def _take_up(self, trials: Trials, stop: Callable[[], bool], look: Callable[[], None]) -> None:
        """Follow a Job that an earlier driver left at work; delete others."""
        store = Store(str(trials.folder))
        for job in self._api.jobs(f"{RUN}={run_id(str(trials.folder))}"):
            name = job["metadata"]["name"]
            told = store.read_json(f"jobs/{name}.json")
            if told is None or end_of(job) is not None or job["metadata"].get("deletionTimestamp"):
                self._api.delete_job(name)
                wait_for_pods(self._api, self._cluster, name)
            else:
                self._job(trials, told["trials"], name, stop, look)

    def _job(
        self,
        trials: Trials,
        numbers: Sequence[int],
        name: str | None,
        stop: Callable[[], bool],
        look: Callable[[], None],
    ) -> tuple[Manifest, list[Manifest]]:
        """Follow a Job, a new one where it has no name yet, to its end."""
        folder, base = str(trials.folder), trials.sweep.base
        command = ("neurokube", "trial", folder, "--job", "{job}")
        request = self._cluster.request(folder, "sweep", len(numbers), command, base.loaders)
        request = replace(request, resources=self._resources)
        if name is not None:
            request = replace(request, name=name)
        else:
            Store(folder).write_json(f"jobs/{request.name}.json", {"trials": list(numbers)})
            create(self._api, self._cluster.profile, request)
        clock, sleep = self._cluster.clock, self._cluster.sleep
        try:
            return follow(self._api, request, lambda pods, ready: look(), clock=clock, sleep=sleep, stop=stop)
        except Drained:
            wait_for_pods(self._api, self._cluster, request.name)
            raise

    def _weigh(
        self,
        trials: Trials,
        numbers: Sequence[int],
        end: Manifest,
        pods: list[Manifest],
        deaths: "Counter[int]",
    ) -> None:
        """Note what became of trials whose pods left no result."""
        if end.get("reason") == "PodFailurePolicy":
            raise failure("sweep", pods)
        last = last_of(pods)
        grown = None
        for index, number in enumerate(numbers):
            if not trials.open([number]):
                continue
            error = _why(last.get(index))
            if isinstance(error, TryAgainError):
                raise error
            deaths[number] += 1
            if _lacked_memory(last.get(index)):
                more = self._resources.doubled("memory", self._cluster.profile.ceiling.memory)
                grown = grown or more
                if more is None:
                    trials.fail(number, f"its pod was killed for memory ({self._resources.memory}); raise 'ceiling'")
            elif deaths[number] >= ATTEMPTS:
                trials.fail(number, f"its pod died {ATTEMPTS} times: {error}")
        self._resources = grown or self._resources


def _why(pod: Manifest | None) -> NeuroKubeError:
    return failure("sweep", [] if pod is None else [pod])


def _lacked_memory(pod: Manifest | None) -> bool:
    return pod is not None and worker_end(pod).get("reason") == "OOMKilled"
