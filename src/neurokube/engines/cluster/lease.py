"""One driver a run: a Lease of Kubernetes that its driver renews, and that another takes over once it is not renewed.

As client-go's leader election, it never compares clocks of two machines: a Lease has run out when whoever waits for it
has seen it unchanged for its whole duration.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from ...errors import TryAgainError
from ..lifeline import lives
from .api import Api, Manifest, Refused
from .manifest import MANAGED

DURATION, RENEWED = 40.0, 10.0
"""Seconds after which a Lease that nobody renews is free, and between renewals."""


class Lease:
    """A Lease in the namespace, held as a context; `lost()` tells whether somebody took it over."""

    def __init__(
        self,
        api: Api,
        name: str,
        labels: Manifest,
        *,
        holder: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        duration: float = DURATION,
    ) -> None:
        self.api, self.name, self.labels = api, name, labels
        self.holder = holder or identity()
        self._sleep, self._duration = sleep, duration
        self._ended, self._lost = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._renewal: threading.Thread | None = None
        self._held: Manifest = {}

    def __enter__(self) -> Self:
        """Take the Lease.

        Raises:
            TryAgainError: where another driver renews it.
        """
        waited, seen = 0.0, ""
        while not self._taken():
            other = self._held["spec"]
            version = self._held["metadata"]["resourceVersion"]
            if seen and version != seen:
                raise TryAgainError(
                    f"in use by another driver ({other['holderIdentity']}); wait for it, end it by 'neurokube cancel', "
                    "or choose another name for the run"
                )
            if waited >= self._duration:
                self._expire()
                waited, seen = 0.0, ""
                continue
            seen = version
            step = min(RENEWED / 4, self._duration)
            self._sleep(step)
            waited += step
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the Lease, if it is still ours."""
        self._ended.set()
        if self._renewal is not None:
            self._renewal.join()
        if not self._lost.is_set():
            try:
                self.api.delete_lease(self.name, self._held["metadata"]["resourceVersion"])
            except Refused:
                return

    def lost(self) -> bool:
        """Whether another driver has the Lease now, or it was cancelled: nothing may be touched any more."""
        return self._lost.is_set()

    def check(self) -> None:
        """Ask the cluster whether the Lease is still ours, and renew it.

        Raises:
            TryAgainError: where it is not.
        """
        if self.lost() or not self._kept():
            self._lost.set()
            raise TryAgainError("cancelled, or taken over by another driver; what is recorded is kept")

    def _kept(self) -> bool:
        with self._lock:
            return self.api.lease(self.name) is not None and self._taken()

    def _taken(self) -> bool:
        """Take the Lease if it is free, ours, or that of a process that died here; else note how it stands."""
        now = self.api.lease(self.name)
        spec = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": round(self._duration),
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        if now is None:
            now = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "labels": {MANAGED: "neurokube", **self.labels}},
            }
        elif not _free(now["spec"].get("holderIdentity", ""), self.holder):
            self._held = now
            return False
        try:
            self._held = self.api.put_lease({**now, "spec": spec})
        except Refused as refused:
            # another was faster
            if refused.status == 409:
                return self._taken()
            raise
        return True

    def _expire(self) -> None:
        try:
            self.api.delete_lease(self.name, self._held["metadata"]["resourceVersion"])
        except Refused as refused:
            if refused.status not in (404, 409):
                raise

    def _renew(self) -> None:
        since = time.monotonic()
        while not self._ended.wait(RENEWED):
            try:
                if not self._kept():
                    self._lost.set()
                    return
                since = time.monotonic()
            except Refused:
                # without an answer for so long another may have it
                if time.monotonic() - since > self._duration:
                    self._lost.set()
                    return


def identity() -> str:
    """Return who this driver is: a Job's name where it is one's pod, else host and process."""
    return os.environ.get("NEUROKUBE_DRIVER") or f"{socket.gethostname()}/{os.getpid()}"


def _free(other: str, mine: str) -> bool:
    """Whether a holder is nobody, ourselves, or a process of this host that is no more."""
    if other in ("", mine):
        return True
    host, _, process = other.rpartition("/")
    return host == socket.gethostname() and process.isdecimal() and not lives(int(process))
