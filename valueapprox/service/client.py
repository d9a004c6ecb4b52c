"""Client: a service over HTTP, with the methods and answers of a Service in this process.

Connections are kept and used again, by any number of threads. A request whose answer was lost is sent again: reading
changes nothing, and a transition that was learned is not learned twice. It needs nothing but NumPy.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_numbers, positive
from valueapprox.service import errors
from valueapprox.service.bodies import JSON, NPY, NPZ, read_npy, read_npz, write_npy, write_npz
from valueapprox.service.errors import InvalidRequestError, QueueFullError, ServiceError
from valueapprox.service.messages import Gradients, LearnResult, Norms, Transitions, Values, Weights, without_gap

__all__ = ["Client"]

SMALL = 64  # numbers that are sent as JSON; npy has a header that costs more to read
BACK_OFF = 0.05  # seconds before the second try, doubled before each further one
LOST = (ConnectionError, http.client.HTTPException, TimeoutError)  # what a request can end with instead of an answer


class Client:
    """A service over HTTP.

    Parameters
    ----------
    url
        Of the service: http://HOST:PORT, or https; a path after it is put before that of every request.
    token
        What its --token-file holds.
    timeout
        Seconds that one try may take.
    retries
        How often a request is sent again when its answer was lost, or when the service cannot take it now (then
        after as many seconds as it says).

    Examples
    --------
    >>> client = Client("http://127.0.0.1:8800")  # doctest: +SKIP
    >>> client.values([[0.1, 0.0, 0.02, 0.0]]).values  # doctest: +SKIP
    array([[0.53]])
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8800", token: str | None = None, timeout: float = 30.0, retries: int = 5
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; expected http://HOST:PORT")
        self.url, self.timeout, self.retries = url, float(timeout), positive("retries", retries, at_least=0)
        self._token = token
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._free: list[http.client.HTTPConnection] = []  # append and pop are safe among threads

    def __reduce__(self) -> tuple[Any, ...]:
        # So that it can be sent to a Ray worker: connections stay here.
        return Client, (self.url, self._token, self.timeout, self.retries)

    # --- what a service does ------------------------------------------------------------------------------------------

    def values(self, states: ArrayLike) -> Values:
        """Predictions (n, k) at states (n, d), all with the same weights."""
        body, kind = _states(states)
        answer = self._ask("POST", "/v1/values", body, kind, accept=NPY)
        return Values(answer.array("values"), answer.version)

    def gradients(self, states: ArrayLike, output: int = 0) -> Gradients:
        """How prediction `output` changes with each input: d v / d s (n, d) at states (n, d)."""
        body = write_npy(_array("states", states))
        answer = self._ask("POST", f"/v1/gradients?output={positive('output', output, at_least=0)}", body, NPY)
        return Gradients(answer.array("gradients"), answer.version)

    def learn(self, batch: Transitions | None = None, **parts: Any) -> LearnResult:
        """Learn from transitions, and wait until they are kept.

        Parameters
        ----------
        batch
            Transitions; or, instead, the arguments of `Transitions.of` by name: ``client.learn(stream="plant-7",
            sequence=4711, state=s, cumulants=1.0, next_state=s_next)``.

        Raises
        ------
        GapError
            If transitions are missing in a stream: `expected` is the number that is due, `result` says what was
            learned.
        InvalidRequestError
            If they are not well formed; its `field` says what is wrong.
        QueueFullError, StorageError, ReadOnlyError
            If the service cannot take them, now or at all.
        ConnectionError
            If no answer came. What was sent may have been learned: sending it again is safe, and then says
            "duplicate".
        """
        if batch is None:
            batch = Transitions.of(**parts)
        elif parts:
            raise TypeError(f"a batch and {', '.join(parts)} were given; expected one or the other")
        if any("\0" in name for name in batch.names):  # an array of text drops it at a name's end
            raise InvalidRequestError("stream", "holds a zero byte; expected printable characters")
        arrays = {name: np.asarray(value) for name, value in vars(batch).items() if value is not None}
        answer = self._ask("POST", "/v1/transitions", write_npz(arrays), NPZ, accept=NPZ, fine=(200, 409))
        found = read_npz(answer.body)
        result = LearnResult(answer.version, found["status"], found["td_errors"], found["expected"])
        return without_gap(batch, result)

    def weights(self) -> Weights:
        """The weights and their version."""
        found = self._ask("GET", "/v1/weights").json()
        blocks = {name: (int(start), tuple(shape)) for name, (start, shape) in found["blocks"].items()}
        w = np.array(found["w"], found["net"]["dtype"])
        w.flags.writeable = False
        return Weights(w, int(found["version"]), blocks, found["net"], tuple(found["names"]))

    def load_weights(self, weights: ArrayLike) -> int:
        """Continue with other weights, (P,) or (m, P); returns the new version. Sent only once."""
        body = write_npy(as_numbers("weights", weights))
        return int(self._ask("PUT", "/v1/weights", body, NPY, repeat=False).json()["version"])

    def norms(self) -> Norms:
        """Euclidean norm of each layer's weights."""
        found = self._ask("GET", "/v1/norms").json()
        return Norms(found["norms"], int(found["version"]))

    def about(self) -> dict[str, Any]:
        """What is served: inputs, predictions, network, limits."""
        return dict(self._ask("GET", "/v1").json())

    def health(self) -> dict[str, Any]:
        """Everything that the service knows of its own state."""
        return dict(self._ask("GET", "/v1/health").json())

    @property
    def version(self) -> int:
        """Number of changes that the weights have had."""
        return self._ask("GET", "/healthz").version

    def close(self) -> None:
        """Close the connections that are kept. The client can be used again."""
        while self._free:
            self._free.pop().close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = JSON,
        *,
        accept: str | None = None,
        fine: tuple[int, ...] = (200,),
        repeat: bool = True,
    ) -> _Answer:
        headers = {"Content-Type": kind, "Accept": accept or kind}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        tries, pause = 0, BACK_OFF
        while True:
            kept = bool(self._free)
            try:
                answer = self._send(method, self._prefix + path, body, headers, fresh=not repeat)
            except LOST as error:
                if kept and repeat and not isinstance(error, TimeoutError):
                    continue  # the service may close a connection that was idle; each is tried once, then a new one
                if not repeat or tries == self.retries:
                    raise ConnectionError(f"no answer from {self.url} ({error or type(error).__name__})") from error
            except OSError as error:  # no such host, no way to it
                raise ConnectionError(f"{self.url} cannot be reached ({error})") from error
            else:
                if answer.status in fine:
                    return answer
                if answer.status not in (429, 503) or not repeat or tries == self.retries:
                    raise answer.error(self.url)
                pause = max(pause, answer.retry_after)
            tries += 1
            time.sleep(min(pause, self.timeout))
            pause *= 2

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str], fresh: bool) -> _Answer:
        connection = None
        if not fresh:  # a kept one may have been closed meanwhile, and what can be sent only once must not find out
            with contextlib.suppress(IndexError):
                connection = self._free.pop()
        if connection is None:
            connection = self._kind(self._host, self._port, timeout=self.timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = _Answer(response.status, response.headers, response.read())
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._free.append(connection)
        return answer


class _Answer(NamedTuple):
    """A response that was read."""

    status: int
    headers: Any
    body: bytes

    @property
    def version(self) -> int:
        return int(self.headers["X-Version"])

    @property
    def retry_after(self) -> float:
        text = self.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else 0.0

    def json(self) -> Any:
        return json.loads(self.body)

    def array(self, name: str) -> np.ndarray:
        return read_npy(self.body, name).copy()

    def error(self, url: str) -> Exception:
        """What a Service in this process would have raised."""
        try:
            problem = self.json()["error"]
            field, message, kind = problem["field"], problem["message"], problem["type"]
        except (ValueError, TypeError, KeyError):
            return ConnectionError(f"{url} answered {self.status}, and not as a value service does")
        if kind == "InvalidRequestError":
            return InvalidRequestError(field, message, status=self.status)
        if kind == "QueueFullError":
            return QueueFullError(message, self.retry_after)
        if kind in ("ClosedError", "ReadOnlyError", "ServiceError", "StorageError"):
            return getattr(errors, kind)(message)
        text = f"{field} {message}" if field else str(message)
        if self.status in (401, 403):
            return PermissionError(text)
        return ServiceError(f"{url} answered {self.status}: {text}")


def _array(name: str, value: ArrayLike) -> np.ndarray:
    array = as_numbers(name, value)
    return array[None] if array.ndim == 1 else array


def _states(states: ArrayLike) -> tuple[bytes, str]:
    array = _array("states", states)
    if array.size <= SMALL and array.dtype.kind == "f" and np.isfinite(array).all():
        return json.dumps({"states": array.tolist()}).encode(), JSON
    return write_npy(array), NPY
