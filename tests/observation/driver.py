"""A driver as its command line starts it, whose cluster is in memory: python driver.py run WORKFLOW --metrics 0"""

import faulthandler
import signal
import time

from seen import Seen, computed, mishaps

from neurokube import cli
from neurokube.engines.cluster import Profile
from neurokube.engines.kubernetes import Kubernetes

TICK = 0.2


def engine(*_: object) -> Kubernetes:
    cluster = Seen(lambda job, index, attempt: mishaps(index, attempt) or computed(job, index, attempt), slots=3)

    def sleep(seconds: float) -> None:
        time.sleep(TICK)
        cluster.sleep(seconds)

    profile = Profile.model_validate({"image": "neurokube:test", "resources": {"gpu": 1}})
    return Kubernetes(profile, cluster, clock=lambda: cluster.now, sleep=sleep)


if __name__ == "__main__":
    # where it hangs, it can be asked where
    faulthandler.register(signal.SIGUSR1)
    cli._cluster = engine
    cli.main()
