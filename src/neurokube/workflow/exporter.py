"""Where Prometheus fetches the metrics of a run: a small web server in the driver."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any

from ..engines import Observer
from ..errors import ConfigurationError, Drained, UsageError
from ..progress import console
from .metrics import Metrics
from .run import Run

_PATIENCE, _LEAST = 60.0, 5.0
"""Seconds that a driver waits at the end for its last figures to be fetched: twice what usually is between two fetches,
within these bounds."""


@contextmanager
def exported(run: Run, engine: str, where: str | None) -> Iterator[Observer]:
    """Serve the metrics of a run at `PORT` or `ADDRESS:PORT`, and yield what has to be told; nothing where no place is.

    Without an address, this machine alone reaches them; in a pod, whoever reaches the pod.  Where somebody fetches
    them regularly, a run that ends by itself waits until the last figures are fetched too, a minute at the most.

    Raises:
        UsageError: where the place cannot be had.
        ConfigurationError: where prometheus_client is not installed.
    """
    if where is None:
        yield Observer()
        return
    server = _server(where)
    server.metrics = Metrics(run, engine)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="exporter", daemon=True).start()
    console.print(f"metrics at {server.url}", soft_wrap=True)
    patience = _PATIENCE
    try:
        with server.metrics as metrics:
            yield metrics
    except (Drained, KeyboardInterrupt):
        # who asked us to stop does not wait
        patience = 0.0
        raise
    finally:
        server.await_reader(patience)
        server.shutdown()
        server.server_close()


def _server(where: str) -> "_Server":
    address, _, text = where.rpartition(":")
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"--metrics {where}: write it as PORT or ADDRESS:PORT, as 9464 or 0.0.0.0:9464")
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigurationError(
            "--metrics: prometheus_client is not installed; pip install 'neurokube[cluster]'"
        ) from None
    host = address.strip("[]") or ("0.0.0.0" if "KUBERNETES_SERVICE_HOST" in os.environ else "127.0.0.1")
    try:
        return _Server(host, int(text))
    except OSError as error:
        what = "the port is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise UsageError(f"--metrics {where}: {what}; choose another, or 0 for any that is free") from None


class _Server(ThreadingHTTPServer):
    """Gives the metrics to whoever asks for /metrics."""

    metrics: Metrics
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, port), _Handler)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/metrics"
        self._fetched: list[float] = []
        self._news = threading.Condition()

    def note(self, began: float) -> None:
        """Note that somebody who asked at `began` has the metrics."""
        with self._news:
            self._fetched = [*self._fetched[-1:], began]
            self._news.notify_all()

    def await_reader(self, patience: float) -> None:
        """Wait, for `patience` seconds at the most, until whoever fetches the metrics has them as they are now."""
        now = time.monotonic()
        with self._news:
            if len(self._fetched) < 2:
                # nobody comes again and again
                return
            patience = min(patience, max(_LEAST, 2 * (self._fetched[1] - self._fetched[0])))
            if now - self._fetched[1] < patience:
                console.print("waiting for the last metrics to be fetched; Ctrl-C ends that")
                with suppress(KeyboardInterrupt):
                    self._news.wait_for(lambda: self._fetched[1] >= now, timeout=patience)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer."""
        from prometheus_client import generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "the metrics are at /metrics")
            return
        began = time.monotonic()
        text = generate_latest(self.server.metrics)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(text)
            self.server.note(began)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
