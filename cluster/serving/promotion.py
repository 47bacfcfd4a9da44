"""Promotion: another version of the model answers everywhere, as a request shows; else the one before does again."""

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

from cluster.serving.deploy import APPLICATION, POLL_SECONDS, Arguments, apply, deployed, reasons, url
from cluster.tracking.registry import ModelVersion
from cluster.tracking.runs import open_registry
from edlm.config import ConfigurationError, parse

ASK_SECONDS = 5.0  # for replicas to say how they stand
KEY = "EDLM_API_KEY"  # in the environment of whoever promotes, where the endpoint asks for one
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class NotPromoted(RuntimeError):
    """The version does not answer everywhere; its message says why, and what answers now."""


class Promotion:
    """The endpoint of this cluster, whose model is to be another version."""

    def __init__(self, timeout_seconds: float, key: str | None) -> None:
        """ConfigurationError where nothing is deployed. `timeout_seconds` is how long a version has to answer."""
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            before = deployed().get(APPLICATION)
        except RayServeException as error:
            raise ConfigurationError("Serve does not run on this cluster; deploy the model first") from error
        if before is None:
            raise ConfigurationError("nothing is deployed on this cluster that could be promoted; deploy it first")
        self._before = before
        self.arguments = parse(Arguments, before.args, source="the deployed application's args")
        if self.arguments.serving.key_file is not None and key is None:
            raise ConfigurationError(f"the endpoint asks for an API key: put one into {KEY} for the request that tries")
        self._timeout_seconds = timeout_seconds
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._handle = serve.get_app_handle(APPLICATION)

    def resolve(self, alias: str | None, number: int | None, storage: str | None) -> ModelVersion:
        """The version of the deployed model that an alias stands for, or a number; ConfigurationError where none is."""
        root = self.arguments.storage or storage
        if root is None:
            raise ConfigurationError("EDLM_HOME: not set, and the deployed application names no storage")
        registry = open_registry(self.arguments.tracking, root)
        if number is not None:
            return registry.numbered(self.arguments.model, number)
        return registry.resolve(self.arguments.model, alias or self.arguments.serving.alias)

    def run(self, version: ModelVersion, canary: Mapping[str, Any]) -> None:
        """Afterwards every replica answers with `version`, and has shown it on the request `canary`.

        Where that does not come about, in time, for whatever reason, what was deployed before is deployed again, and
        NotPromoted says why; Ctrl-C does the same, and goes on as KeyboardInterrupt.
        """
        answered = {one["answers"]["digest"] for one in standings(self._handle)}
        try:
            apply(with_version(self._before, version))
            self._wait(version, canary)
        except BaseException as error:  # whatever it is, nobody has seen the version answer
            now = self._restored(answered, wait=isinstance(error, Exception))
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            why = str(error) if isinstance(error, NotPromoted) else f"{type(error).__name__}: {error}"
            raise NotPromoted(f"{why}; {now}") from error

    def _restored(self, digests: set[str], wait: bool) -> str:
        """What answers, after what was deployed before has been deployed again."""
        try:
            apply(self._before)
            if not wait or self._wait_for(digests):
                return "the version before answers"
            return "the version before does not answer everywhere yet"
        except Exception as error:  # said with why it had to be
            return f"the version before may not be deployed again ({error}); promote it by its number"

    def _wait(self, version: ModelVersion, canary: Mapping[str, Any]) -> None:
        """Nothing, once every replica stands by `version` and one has answered with it."""
        deadline = time.monotonic() + self._timeout_seconds
        while (missing := self._missing(version, canary, deadline)) is not None:
            if time.monotonic() > deadline:
                raise NotPromoted(f"after {self._timeout_seconds:g} s {missing}")
            time.sleep(POLL_SECONDS)

    def _missing(self, version: ModelVersion, canary: Mapping[str, Any], deadline: float) -> str | None:
        """What is not as it should be yet; None where nothing is. NotPromoted where it never will."""
        application = serve.status().applications[APPLICATION]
        if application.status in FAILED:
            raise NotPromoted(reasons(application))
        said = standings(self._handle)
        failed = [one["error"] for one in said if one["state"] == "failed" and one["wanted"] == asdict(version)]
        if failed:
            raise NotPromoted(failed[0])
        behind = [one for one in said if one["answers"]["digest"] != version.digest]
        # Where Serve may scale to zero there may be no replica, and the request starts one.
        replicas = _replicas()
        if behind or len(said) != replicas:
            return f"{len(behind)} of {len(said)} replicas answer with another version, and there are {replicas}"
        left = max(1.0, deadline - time.monotonic())
        return unanswered(url(self.arguments.serving), self._headers, version, canary, left)

    def _wait_for(self, digests: set[str]) -> bool:
        """Whether in time every replica answers with one of these."""
        deadline = time.monotonic() + self._timeout_seconds
        while time.monotonic() < deadline:
            said = standings(self._handle)
            stand = all(one["state"] == "stands" and one["answers"]["digest"] in digests for one in said)
            if stand and len(said) == _replicas():
                return True
            time.sleep(POLL_SECONDS)
        return False


def unanswered(
    at: str, headers: Mapping[str, str], version: ModelVersion, canary: Mapping[str, Any], seconds: float
) -> str | None:
    """Why the request was not answered with `version` yet; None where it was. NotPromoted for a bad answer, or none."""
    where = f"{at}/v1/completions"
    try:
        response = httpx.post(where, json=dict(canary), headers=dict(headers), timeout=seconds, trust_env=False)
    except httpx.HTTPError as error:
        raise NotPromoted(f"the request that tries it got no answer from {where} ({error})") from error
    said = f"the request that tries it was answered {response.status_code}"
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:  # busy with the requests of others: tried again
        return f"{said}, last by {where}: {response.text[:300]}; try again when less is asked of it"
    if response.status_code != httpx.codes.OK:
        raise NotPromoted(f"{said}: {response.text[:300]}")
    try:
        digest = response.json()["edlm"]["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise NotPromoted(f"{said} by {where}, without the model's digest: {response.text[:300]}") from error
    return None if digest == version.digest else f"the request that tries it was answered with digest {digest}"


def with_version(application: ServeApplicationSchema, version: ModelVersion) -> ServeApplicationSchema:
    """The same config with another model: nothing that would start a new replica."""
    tree = application.model_dump(exclude_unset=True)
    settings = {one["name"]: one for one in tree.get("deployments", [])}
    settings[APPLICATION] = {**settings.get(APPLICATION, {"name": APPLICATION}), "user_config": asdict(version)}
    return ServeApplicationSchema.model_validate({**tree, "deployments": list(settings.values())})


def standings(handle: DeploymentHandle) -> list[dict[str, Any]]:
    """How each running replica stands; one that is going away says nothing."""
    try:
        said = handle.broadcast("standing").results(timeout_s=ASK_SECONDS, return_exceptions=True)
    except DeploymentUnavailableError:  # none is running
        return []
    except TimeoutError:  # one that is killed, or too busy: none has said anything, and they are asked again
        return []
    return [one for one in said if not isinstance(one, Exception)]


def _replicas() -> int:
    """The replicas that answer, or are just being told of a version; those that start are told of it first."""
    states = serve.status().applications[APPLICATION].deployments[APPLICATION].replica_states
    return sum(count for state, count in states.items() if state in ("RUNNING", "UPDATING"))
