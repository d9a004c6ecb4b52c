"""The HTTP interface under Ray Serve: many replicas that read with weights of their own, and one learner, a Ray actor.

A replica asks the learner at an interval whether its weights have changed, and takes them over; every answer names the
version that it was computed with. Transitions go through to the learner. For one machine, one process of `serve` is ten
times as fast; this is for more than one.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import FastAPI

from valueapprox.service.api import create_app
from valueapprox.service.gate import LOOPBACK
from valueapprox.service.messages import Gradients, LearnResult, Norms, Transitions, Values, Weights
from valueapprox.service.ray_actor import RemoteService, connect
from valueapprox.service.schemas import Limits
from valueapprox.service.server import Repeating
from valueapprox.service.service import Service
from valueapprox.service.settings import ServiceSettings

__all__ = ["Follower", "deploy", "withdraw"]

MAX_VERSIONS = 1000
log = logging.getLogger("valueapprox.service")


class Follower:
    """A reader of a service elsewhere, with the methods of a Service: weights here, learning there.

    Parameters
    ----------
    learner
        The service.
    seconds
        Between two looks at whether its weights have changed: how old an answer may be.
    """

    def __init__(self, learner: RemoteService, seconds: float = 0.2) -> None:
        self._learner = learner
        self.settings: ServiceSettings = learner.settings
        self.net, self.names = learner.net, learner.names
        self.n_inputs, self.n_predictions = learner.n_inputs, learner.n_predictions
        first = learner.weights()
        self._reader = Service(replace(self.settings, read_only=True), weights=first.w)
        self._versions = {self._reader.version: first.version}  # ours -> the learner's
        self._problem = ""
        self._following = Repeating("follower", seconds, self._follow)

    def _follow(self) -> None:
        try:
            if self._learner.version != self.version:
                self._take(self._learner.weights())
            self._problem = ""
        except Exception as error:  # noqa: BLE001  (the learner may be starting again: values are served meanwhile)
            if not self._problem:
                log.warning("the learner does not answer", extra={"reason": str(error)})
            self._problem = f"the learner does not answer: {error}"

    def _take(self, weights: Weights) -> None:
        own = self._reader.version + 1
        self._versions[own] = weights.version  # first: an answer with the new weights looks for it
        self._versions.pop(own - MAX_VERSIONS, None)
        self._reader.load_weights(weights.w)

    @property
    def version(self) -> int:
        """Of the weights that are here."""
        return self._versions[self._reader.version]

    def values(self, states: np.ndarray) -> Values:
        """Predictions (n, k) at states (n, d), all with the same weights."""
        values, own = self._reader.values(states)
        return Values(values, self._versions[own])

    def gradients(self, states: np.ndarray, output: int = 0) -> Gradients:
        """How prediction `output` changes with each input: d v / d s (n, d) at states (n, d)."""
        gradients, own = self._reader.gradients(states, output)
        return Gradients(gradients, self._versions[own])

    def norms(self) -> Norms:
        """Euclidean norm of each layer's weights."""
        norms, own = self._reader.norms()
        return Norms(norms, self._versions[own])

    def weights(self) -> Weights:
        """The weights that are here."""
        weights = self._reader.weights()
        return weights._replace(version=self._versions[weights.version])

    def submit(self, batch: Transitions) -> Future[LearnResult]:
        """Learn, at the learner."""
        return self._learner.submit(batch)

    def load_weights(self, weights: np.ndarray) -> int:
        """Replace the learner's weights; the new version."""
        return self._learner.load_weights(weights)

    def health(self) -> dict[str, Any]:
        """The learner's; without it, values are served all the same."""
        problem = self._problem
        if not problem:
            try:
                return self._learner.health()
            except Exception as error:  # noqa: BLE001  (gone, starting again, too slow)
                problem = f"the learner does not answer: {error}"
        return {"ready": True, "learning": False, "reason": problem, "version": self.version}

    def diagnostics(self) -> dict[str, float]:
        """The learner's."""
        try:
            return {} if self._problem else self._learner.diagnostics()
        except Exception:  # noqa: BLE001  (as above)
            return {}

    def recent(self, after: int = 0) -> list[dict[str, Any]]:
        """The learner's."""
        try:
            return [] if self._problem else self._learner.recent(after)
        except Exception:  # noqa: BLE001  (as above)
            return []

    def close(self) -> None:
        """Stop following. The learner continues."""
        self._following.close()
        self._reader.close()


def deploy(
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8800,
    replicas: tuple[int, int] = (1, 4),
    seconds: float = 0.2,
    token: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve the Ray actor `name` under Ray Serve, on the cluster that this process is connected to.

    Parameters
    ----------
    name
        Of the actor, which `start` started.
    host, port
        Where Serve's proxies listen, on every node that runs a replica.
    replicas
        Minimum and maximum number of them; Serve starts and stops them depending on the load.
    seconds
        How old the weights of a replica may be.
    token, limits
        See `create_app`. Without a token only this machine can reach it.

    Raises
    ------
    ValueError
        If other machines could reach it without a token, or Ray Serve is not installed.
    LookupError
        If there is no such actor.
    """
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Ray Serve is not installed: pip install 'valueapprox[ray-serve]' ({error.name} is missing)"
        ) from None
    if token is None and host not in LOOPBACK:
        raise ValueError(f"host is {host}, which other machines can reach; expected a token with it")
    connect(name, timeout=10.0)  # fails here, with a sentence, rather than in every replica
    serve.start(http_options={"host": host, "port": port})

    def build() -> FastAPI:  # in each replica
        return create_app(Follower(connect(name, timeout=10.0), seconds), token=token, limits=limits)

    deployment = serve.deployment(
        name="values",
        autoscaling_config={"min_replicas": replicas[0], "max_replicas": replicas[1], "target_ongoing_requests": 8},
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1},
        logging_config={"enable_access_log": False},
    )(serve.ingress(build)(_Replica))
    serve.run(deployment.bind(), name=_application(name), route_prefix="/")


def withdraw(name: str) -> None:
    """Stop what `deploy` started; the actor continues."""
    from ray import serve

    serve.delete(_application(name))


def _application(name: str) -> str:
    return f"value-service-{name}"


class _Replica:
    """What Serve wraps around the application."""
