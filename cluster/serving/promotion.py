"""Promotion: switch all replicas to another model version, verified by a canary request, or roll back."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import httpx
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ServeApplicationSchema

from cluster.model_sources import require_source
from cluster.serving.deploy import APPLICATION, POLL_SECONDS, Arguments, apply, deployed, reasons, url
from cluster.tracking.model_version import ModelVersion
from cluster.tracking.runs import open_registry
from edlm.config import ConfigurationError, parse

ASK_SECONDS = 5.0  # timeout for the status of the replicas
KEY = "EDLM_API_KEY"  # variable in the caller's environment, if the endpoint requires a key
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class NotPromoted(RuntimeError):
    """The version does not answer on all replicas; the message says why, and what answers now."""


class Promotion:
    """Promotion of another model version on the endpoint of this cluster."""

    def __init__(self, timeout_seconds: float, key: str | None) -> None:
        """Raise ConfigurationError if nothing is deployed. A version has `timeout_seconds` to answer."""
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            before = deployed().get(APPLICATION)
        except RayServeException as error:
            raise ConfigurationError("Serve does not run on this cluster; deploy the model first") from error
        if before is None:
            raise ConfigurationError("no application is deployed on this cluster; deploy it first")
        self._before = before
        self.arguments = parse(Arguments, before.args, source="the deployed application's args")
        if self.arguments.serving.key_file is not None and key is None:
            raise ConfigurationError(f"the endpoint asks for an API key: set {KEY} for the test request")
        self._timeout_seconds = timeout_seconds
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._handle = serve.get_app_handle(APPLICATION)

    def resolve(self, alias: str | None, number: int | None, storage: str | None) -> ModelVersion:
        """Return a version of the deployed model by number or alias; raise ConfigurationError if there is none."""
        root = self.arguments.storage or storage
        if root is None:
            raise ConfigurationError("EDLM_HOME: not set, and the deployed application names no storage")
        registry = open_registry(self.arguments.tracking, root)
        serving, model = self.arguments.serving, self.arguments.model
        version = (
            registry.resolve(model, alias or serving.alias) if number is None else registry.numbered(model, number)
        )
        require_source(version.uri, serving.sources)
        return version

    def run(self, version: ModelVersion, canary: Mapping[str, Any]) -> None:
        """Switch every replica to `version` and verify it with the request `canary`.

        If this does not succeed in time, for any reason, the previous config is deployed again, and NotPromoted says
        why; Ctrl-C does the same and is then raised as KeyboardInterrupt.
        """
        digests = {status["current"]["digest"] for status in swap_statuses(self._handle)}
        try:
            apply(with_version(self._before, version))
            self._wait(version, canary)
        except BaseException as error:  # in any case, the version was not seen to answer
            outcome = self._restored(digests, wait=isinstance(error, Exception))
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            reason = str(error) if isinstance(error, NotPromoted) else f"{type(error).__name__}: {error}"
            raise NotPromoted(f"{reason}; {outcome}") from error

    def _restored(self, digests: set[str], wait: bool) -> str:
        """Deploy the previous config again and return a message about what answers."""
        try:
            apply(self._before)
            if not wait or self._wait_for(digests):
                return "the previous version is serving"
            return "the previous version is not yet serving on every replica"
        except Exception as error:  # reported together with the reason for the rollback
            return f"the previous version may not have been restored ({error}); promote it by its number"

    def _wait(self, version: ModelVersion, canary: Mapping[str, Any]) -> None:
        """Wait until every replica has `version` and one has answered with it; raise NotPromoted on timeout."""
        deadline = time.monotonic() + self._timeout_seconds
        while (missing := self._missing(version, canary, deadline)) is not None:
            if time.monotonic() > deadline:
                raise NotPromoted(f"after {self._timeout_seconds:g} s {missing}")
            time.sleep(POLL_SECONDS)

    def _missing(self, version: ModelVersion, canary: Mapping[str, Any], deadline: float) -> str | None:
        """Return what is not as required yet, or None; raise NotPromoted if it never will be."""
        application = serve.status().applications[APPLICATION]
        if application.status in FAILED:
            raise NotPromoted(reasons(application))
        statuses = swap_statuses(self._handle)
        failed = [
            status["error"]
            for status in statuses
            if status["state"] == "failed" and status["target"] == asdict(version)
        ]
        if failed:
            raise NotPromoted(failed[0])
        behind = [status for status in statuses if status["current"]["digest"] != version.digest]
        # If Serve may scale to zero, there may be no replica; the canary request then starts one.
        replicas = _replicas()
        if behind or len(statuses) != replicas:
            return f"{len(behind)} of {len(statuses)} replicas serve another version; the deployment has {replicas}"
        remaining = max(1.0, deadline - time.monotonic())
        return unanswered(url(self.arguments.serving), self._headers, version, canary, remaining)

    def _wait_for(self, digests: set[str]) -> bool:
        """Return whether every replica answers with one of these digests in time."""
        deadline = time.monotonic() + self._timeout_seconds
        while time.monotonic() < deadline:
            statuses = swap_statuses(self._handle)
            restored = all(status["state"] == "ready" and status["current"]["digest"] in digests for status in statuses)
            if restored and len(statuses) == _replicas():
                return True
            time.sleep(POLL_SECONDS)
        return False


def unanswered(
    at: str, headers: Mapping[str, str], version: ModelVersion, canary: Mapping[str, Any], seconds: float
) -> str | None:
    """Return why `version` has not answered the request yet, or None; raise NotPromoted for a bad answer, or none."""
    target = f"{at}/v1/completions"
    try:
        response = httpx.post(target, json=dict(canary), headers=dict(headers), timeout=seconds, trust_env=False)
    except httpx.HTTPError as error:
        raise NotPromoted(f"the test request got no response from {target} ({error})") from error
    outcome = f"the test request was answered with status {response.status_code}"
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:  # busy with other requests: retried
        return f"{outcome}, last by {target}: {response.text[:300]}; try again when the load is lower"
    if response.status_code != httpx.codes.OK:
        raise NotPromoted(f"{outcome}: {response.text[:300]}")
    try:
        digest = response.json()["edlm"]["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise NotPromoted(f"{outcome} by {target}, without the model's digest: {response.text[:300]}") from error
    return None if digest == version.digest else f"the test request was served by digest {digest}"


def with_version(application: ServeApplicationSchema, version: ModelVersion) -> ServeApplicationSchema:
    """Return the same config with another model, without a difference that would start a new replica."""
    tree = application.model_dump(exclude_unset=True)
    settings = {deployment["name"]: deployment for deployment in tree.get("deployments", [])}
    settings[APPLICATION] = {**settings.get(APPLICATION, {"name": APPLICATION}), "user_config": asdict(version)}
    return ServeApplicationSchema.model_validate({**tree, "deployments": list(settings.values())})


def swap_statuses(handle: DeploymentHandle) -> list[dict[str, Any]]:
    """Return the status of each running replica; one that is shutting down is omitted."""
    try:
        results = handle.broadcast("status").results(timeout_s=ASK_SECONDS, return_exceptions=True)
    except DeploymentUnavailableError:  # no replica is running
        return []
    except TimeoutError:  # a replica was killed or is too busy: no status is known, and the caller asks again
        return []
    return [result for result in results if not isinstance(result, Exception)]


def _replicas() -> int:
    """Return the number of replicas that answer or are being reconfigured; starting ones are reconfigured first."""
    states = serve.status().applications[APPLICATION].deployments[APPLICATION].replica_states
    return sum(count for state, count in states.items() if state in ("RUNNING", "UPDATING"))
