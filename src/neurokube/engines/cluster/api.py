"""The few calls of the Kubernetes API that the engine makes, on plain dicts."""

import json
from typing import Any, Protocol

from ...errors import ConfigurationError, NeuroKubeError
from .profile import Profile

Manifest = dict[str, Any]

VERBS = (
    ("create", "batch", "jobs"),
    ("list", "batch", "jobs"),
    ("get", "batch", "jobs"),
    ("patch", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
    ("list", "", "events"),
    *((verb, "coordination.k8s.io", "leases") for verb in ("get", "create", "update", "delete")),
)
"""What a driver does, as (verb, API group, resource): no more rights than these are asked for."""


class Refused(NeuroKubeError):
    """The API server said no; `status` is that of HTTP, `message` what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the Kubernetes API refused ({status}): {message}")
        self.status, self.message = status, message

    @property
    def passing(self) -> bool:
        """Whether the same may be granted a little later: no answer, too many requests, a server that is not well."""
        return self.status in (0, 429) or self.status >= 500


class Api(Protocol):
    """What the engine asks of a cluster, in one namespace."""

    def create_job(self, job: Manifest) -> None:
        """Create a Job."""

    def job(self, name: str) -> Manifest | None:
        """Return a Job, None where there is none."""

    def jobs(self, selector: str) -> list[Manifest]:
        """Return the Jobs with some labels."""

    def patch_job(self, name: str, patch: Manifest) -> None:
        """Change fields of a Job (JSON merge patch); it need not be there."""

    def delete_job(self, name: str) -> None:
        """Delete a Job with its pods, which get their grace period; it need not be there."""

    def lease(self, name: str) -> Manifest | None:
        """Return a Lease, None where there is none."""

    def put_lease(self, lease: Manifest) -> Manifest:
        """Create a Lease, or replace the version of it that this was read from; 409 where it changed since."""

    def delete_lease(self, name: str, version: str) -> None:
        """Delete a Lease of a version; it need not be there, 409 where it changed since."""

    def pods(self, selector: str) -> list[Manifest]:
        """Return the pods with some labels."""

    def log(self, pod: str, lines: int) -> str:
        """Return the last lines that a pod printed, "" where there are none to be had."""

    def events(self, name: str) -> list[Manifest]:
        """Return the events about an object."""

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether the user may do something."""


class RealApi:
    """A cluster, by the official client."""

    def __init__(self, profile: Profile) -> None:
        from kubernetes import client, config

        try:
            try:
                if profile.context is None:
                    config.load_incluster_config()
                else:
                    config.load_kube_config(context=profile.context)
            except config.ConfigException:
                config.load_kube_config(context=profile.context)
        except (config.ConfigException, OSError) as error:
            raise ConfigurationError(
                f"no cluster to be found ({str(error).splitlines()[0]}); set KUBECONFIG, or 'context' in the profile"
            ) from None
        settings = client.Configuration.get_default_copy()
        settings.retries = 3
        self._client = client.ApiClient(settings)
        self._namespace = profile.namespace
        self.requests = 0

    def create_job(self, job: Manifest) -> None:
        """Create a Job."""
        self._call("POST", f"{self._batch}/jobs", body=job)

    def job(self, name: str) -> Manifest | None:
        """Return a Job, None where there is none."""
        return self._found("GET", f"{self._batch}/jobs/{name}")

    def jobs(self, selector: str) -> list[Manifest]:
        """Return the Jobs with some labels."""
        return self._items(f"{self._batch}/jobs", [("labelSelector", selector)])

    def patch_job(self, name: str, patch: Manifest) -> None:
        """Change fields of a Job (JSON merge patch); it need not be there."""
        self._found("PATCH", f"{self._batch}/jobs/{name}", body=patch)

    def delete_job(self, name: str) -> None:
        """Delete a Job with its pods, which get their grace period; it need not be there."""
        self._found("DELETE", f"{self._batch}/jobs/{name}", query=[("propagationPolicy", "Background")])

    def lease(self, name: str) -> Manifest | None:
        """Return a Lease, None where there is none."""
        return self._found("GET", f"{self._leases}/{name}")

    def put_lease(self, lease: Manifest) -> Manifest:
        """Create a Lease, or replace the version of it that this was read from; 409 where it changed since."""
        if "resourceVersion" in lease["metadata"]:
            return self._call("PUT", f"{self._leases}/{lease['metadata']['name']}", body=lease)
        return self._call("POST", self._leases, body=lease)

    def delete_lease(self, name: str, version: str) -> None:
        """Delete a Lease of a version; it need not be there, 409 where it changed since."""
        self._found("DELETE", f"{self._leases}/{name}", body={"preconditions": {"resourceVersion": version}})

    def pods(self, selector: str) -> list[Manifest]:
        """Return the pods with some labels."""
        return self._items(f"{self._core}/pods", [("labelSelector", selector)])

    def log(self, pod: str, lines: int) -> str:
        """Return the last lines that a pod printed, "" where there are none to be had."""
        try:
            return self._text("GET", f"{self._core}/pods/{pod}/log", [("tailLines", str(lines))]).decode(
                errors="replace"
            )
        except Refused:
            return ""

    def events(self, name: str) -> list[Manifest]:
        """Return the events about an object."""
        return self._items(f"{self._core}/events", [("fieldSelector", f"involvedObject.name={name}")])

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether the user may do something."""
        name, _, sub = resource.partition("/")
        wanted = {"namespace": self._namespace, "verb": verb, "group": group, "resource": name, "subresource": sub}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wanted},
        }
        answer = self._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool(answer["status"].get("allowed"))

    @property
    def _batch(self) -> str:
        return f"/apis/batch/v1/namespaces/{self._namespace}"

    @property
    def _core(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}"

    @property
    def _leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def _found(self, method: str, path: str, query: Any = (), body: Any = None) -> Manifest | None:
        """Return what `_call` does, None where there is no such object."""
        try:
            return self._call(method, path, query, body)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def _items(self, path: str, query: list[tuple[str, str]]) -> list[Manifest]:
        """Return a list, page by page."""
        found: list[Manifest] = []
        token = ""
        while True:
            page = self._call("GET", path, query=[*query, ("limit", "500"), *([("continue", token)] if token else [])])
            found += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return found

    def _call(self, method: str, path: str, query: Any = (), body: Any = None) -> Manifest:
        answer: Manifest = json.loads(self._text(method, path, query, body))
        return answer

    def _text(self, method: str, path: str, query: Any = (), body: Any = None) -> bytes:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        self.requests += 1
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": kind}
        try:
            answer = self._client.call_api(
                path,
                method,
                query_params=list(query),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=30,
            )
        except ApiException as error:
            raise Refused(error.status or 0, _message(error)) from None
        except (HTTPError, OSError) as error:
            host = self._client.configuration.host
            raise Refused(0, f"{host} does not answer ({type(error).__name__})") from None
        return bytes(answer.data)


def _message(error: Any) -> str:
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason)
    return " ".join(message.split())[:500]
