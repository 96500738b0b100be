"""Where pods of a step are best placed: near what they read and write, and on the one node of a volume that has one."""

from collections.abc import Mapping, Sequence
from typing import Any

from .profile import Mount, Profile, Resources, amount

_SHARE, _MOST = 16, 64 << 20
"""Part of a pod's memory, and bytes at the most, that keep what is read again where the profile does not say how much.

Nearly all of what blocks of grey values share with their neighbours fits in; see `benchmarks.staging`.
"""


def below(place: str, url: str) -> bool:
    """Whether a path or URL is a place, or lies in it."""
    return f"{url.rstrip('/')}/".startswith(f"{place.rstrip('/')}/")


def needed(volumes: Sequence[Mount], data: Mapping[str, int] | None) -> tuple[Mount, ...]:
    """Return the volumes that pods get: of those that only one node can have, those that their data lies in."""
    return tuple(v for v in volumes if v.shared or data is None or any(below(v.path, url) for url in data))


def affinity(profile: Profile, alike: Mapping[str, str], data: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the affinity of pods with these data, {} where they may run anywhere; `alike` are labels of their run."""
    found: dict[str, Any] = {}
    if near := _near(profile.near, data or {}):
        terms = [{"matchExpressions": _expressions(dict(where))} for where in near]
        total = sum(near.values())
        found["nodeAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": max(1, round(100 * size / total)), "preference": term}
                for size, term in zip(near.values(), terms, strict=True)
            ]
        }
        if profile.near_required:
            found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    if not all(volume.shared for volume in profile.volumes):
        # the first pod of a run finds no other and goes where it likes, the rest follow it, driver included
        term = {"labelSelector": {"matchLabels": dict(alike)}, "topologyKey": "kubernetes.io/hostname"}
        found["podAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return found


def _near(stores: Mapping[str, Mapping[str, str]], data: Mapping[str, int]) -> dict[tuple[tuple[str, str], ...], int]:
    """Return the bytes near the nodes of certain labels; of stores within one another the innermost counts."""
    found: dict[tuple[tuple[str, str], ...], int] = {}
    for url, size in data.items():
        if (places := [place for place in stores if below(place, url)]) and (labels := stores[max(places, key=len)]):
            where = tuple(sorted(labels.items()))
            found[where] = found.get(where, 0) + size
    return found


def _expressions(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "operator": "In", "values": [value]} for key, value in labels.items()]


def cache(profile: Profile, resources: Resources) -> list[tuple[str, str]]:
    """Return the environment variable that says how much of its memory a pod keeps for what it reads again."""
    size = min(_MOST, int(amount(resources.memory)) // _SHARE) if profile.cache is None else int(amount(profile.cache))
    return [("NEUROKUBE_CACHE", str(size))]


def scratch(profile: Profile, resources: Resources) -> list[tuple[str, str]]:
    """Return the environment variables by which pods stage: which folder, and how much of it they may fill.

    A pod that fills more than the size of its scratch is evicted; so is one that has more on the node's disk than its
    storage, logs included; and what lies in memory counts as its memory, which what it computes needs too.
    """
    if not profile.staging or profile.scratch is None:
        return []
    size = int(amount(profile.scratch))
    other = amount(resources.memory) / 4 if profile.scratch_medium else amount(resources.storage) * 3 / 4
    return [("NEUROKUBE_SCRATCH", "/scratch"), ("NEUROKUBE_SCRATCH_BYTES", str(min(size - size // 16, int(other))))]
