"""What JSON bodies hold: models of answers, and models of requests made from one service's shapes.

So the OpenAPI description says exactly what is taken: how many numbers a state has, how large they may be, and which
fields there are. The models check the form, of which arrays are made; what these hold is checked by the service, in the
same place as what comes in npy and npz bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, create_model

from valueapprox.checks import positive
from valueapprox.service import messages
from valueapprox.service.errors import InvalidRequestError
from valueapprox.service.messages import STATUS_NAMES, Transitions
from valueapprox.service.settings import ServiceSettings

__all__ = ["ARRAYS_TEXT", "Limits", "Requests", "Served", "parse", "transitions_from"]

MAX_COLONS = 250  # of an object: a transition has nine fields, and the name of its stream may hold 200
MAX_PROBLEMS = 1000  # that are looked at one by one
STRICT = ConfigDict(extra="forbid", strict=True)


class Served(Protocol):
    """What the application needs of a service; see `Service`."""

    settings: ServiceSettings
    n_inputs: int
    n_predictions: int
    names: tuple[str, ...]

    @property
    def version(self) -> int: ...  # noqa: D102
    def submit(self, batch: Transitions) -> Future[messages.LearnResult]: ...  # noqa: D102
    def values(self, states: np.ndarray) -> messages.Values: ...  # noqa: D102
    def gradients(self, states: np.ndarray, output: int = 0) -> messages.Gradients: ...  # noqa: D102
    def weights(self) -> messages.Weights: ...  # noqa: D102
    def norms(self) -> messages.Norms: ...  # noqa: D102
    def load_weights(self, weights: np.ndarray) -> int: ...  # noqa: D102
    def health(self) -> dict[str, Any]: ...  # noqa: D102
    def diagnostics(self) -> dict[str, float]: ...  # noqa: D102
    def recent(self, after: int = 0) -> list[dict[str, Any]]: ...  # noqa: D102


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how long it may take."""

    max_body: int = 16 * 2**20
    """Bytes of a body."""
    max_reading: int = 128 * 2**20
    """Bytes of all bodies that are being read; beyond it requests are answered with 429."""
    max_states: int = 65_536
    """States in a request."""
    body_seconds: float = 20.0
    """Until a body has arrived."""
    answer_seconds: float = 30.0
    """Until transitions are acknowledged."""

    def __post_init__(self) -> None:
        for name in ("max_body", "max_reading", "max_states"):
            positive(name, getattr(self, name))


# --- answers ---


class Problem(BaseModel):
    """What was wrong."""

    type: str = Field(description="for programs: the kind of error, as StorageError")
    field: str | None = Field(description="the field, as states[0][2]; null if it is the request as a whole")
    message: str


class VersionAnswer(BaseModel):
    """The version of the weights that the answer is of."""

    version: int


class Error(VersionAnswer):
    """The body of every answer that is no success."""

    error: Problem


class ValuesAnswer(VersionAnswer):
    """The predictions at each state."""

    values: list[list[float | None]] = Field(description="(n, k); null where a number is too large for the network")


class GradientsAnswer(VersionAnswer):
    """How a prediction changes with each input."""

    gradients: list[list[float | None]] = Field(description="(n, d), d v / d s")


class NormsAnswer(VersionAnswer):
    """Euclidean norm of each layer's weights."""

    norms: dict[str, float]


class WeightsAnswer(VersionAnswer):
    """The weights w, one row per network, and where each block lies in a row."""

    w: list[list[float]]
    blocks: dict[str, list[Any]] = Field(description="name: [where it starts in a row, its shape]")
    net: dict[str, Any]
    names: list[str]


class OneLearned(VersionAnswer):
    """What became of a transition."""

    status: Literal[STATUS_NAMES]  # type: ignore[valid-type]
    td_errors: list[float] | None = Field(description="one per prediction, before the update; null if not learned")
    expected: int | None = Field(description="the sequence number that was due, after a gap")
    error: Problem | None = None


class ManyLearned(VersionAnswer):
    """What became of transitions, in their order."""

    learned: int
    duplicates: int
    rejected: int
    diverged: int
    status: list[Literal[STATUS_NAMES]]  # type: ignore[valid-type]
    td_errors: list[list[float] | None]
    expected: list[int | None]
    error: Problem | None = None


class Alive(VersionAnswer):
    """The process answers."""

    status: Literal["ok"]


class Ready(VersionAnswer):
    """Whether values are served, and whether anything is learned."""

    ready: bool
    learning: bool
    reason: str | None


class About(VersionAnswer):
    """What is served."""

    inputs: int
    predictions: list[str]
    discounts: list[float]
    lams: list[float]
    network: dict[str, Any]
    optimizer: dict[str, Any]
    separate: bool
    read_only: bool
    durability: str
    on_gap: str
    max_batch: int = Field(description="transitions in a request")
    max_states: int = Field(description="states in a request")
    max_body: int = Field(description="bytes of a body")
    valueapprox: str = Field(description="the version of the program")


class Point(BaseModel):
    """A transition that was learned, and the predictions at its state after that."""

    id: int
    seconds: float = Field(description="since the service started")
    stream: str
    version: int
    values: list[float | None]
    td_errors: list[float | None]


class RecentAnswer(VersionAnswer):
    """The last minutes."""

    predictions: list[str] = Field(description="those that are in the points, the first 32 at most")
    points: list[Point]
    requests: dict[str, int] = Field(description="requests since the start by the first digit of their status, as 4xx")
    health: dict[str, Any]


# --- requests ---


def _whole(value: Any) -> Any:
    """7.0 is an integer in JSON, which knows one kind of number."""
    return int(value) if type(value) is float and value.is_integer() else value


def _described(kind: Any, **schema: Any) -> Any:
    """A type whose bounds the description states; the service checks them."""
    return Annotated[kind, Field(json_schema_extra=schema)]


class Requests:
    """The models of requests to one service: how many numbers a state has is part of them.

    A number may be as large as the network's float type holds. One prediction has a `reward` and a `discount`; several
    have `cumulants` and `discounts`.
    """

    def __init__(self, service: Served, limits: Limits) -> None:
        d, k, max_batch = service.n_inputs, service.n_predictions, service.settings.max_batch
        limit = float(np.finfo(service.settings.net.dtype).max)
        number: Any = _described(float, minimum=-limit, maximum=limit)
        unit: Any = _described(float, minimum=0, maximum=1)
        # Lists end at their first wrong entry: every one of a million would cost seconds and gigabytes to describe.
        state: Any = Annotated[list[number], Field(min_length=d, max_length=d), FailFast()]
        states: Any = Annotated[_described(list[state], minItems=1, maxItems=limits.max_states), FailFast()]
        own = "of this transition, instead of the service's"
        signals: dict[str, Any] = {
            "reward": (number, Field(description="what is summed up, from state to next_state")),
            "discount": (unit | None, Field(None, description=own)),
        }
        if k > 1:
            exactly = Field(min_length=k, max_length=k)
            signals = {
                "cumulants": (
                    Annotated[list[number], exactly], Field(description=f"the signals of {', '.join(service.names)}"),
                ),
                "discounts": (Annotated[list[unit], exactly] | None, Field(None, description=own)),
            }  # fmt: skip
        self.states = create_model("States", __config__=STRICT, states=(states, ...))
        sequence: Any = Annotated[_described(int, minimum=0, maximum=messages.MAX_SEQUENCE), BeforeValidator(_whole)]
        transition: Any = create_model(
            "Transition",
            __config__=STRICT,
            stream=(_described(str, minLength=1, maxLength=messages.MAX_NAME_LENGTH, format="printable"), ...),
            sequence=(
                sequence, Field(description="number of the transition in its stream; the next one has the next number"),
            ),
            state=(state, ...),
            **signals,
            next_state=(state, Field(description="at an ending the last observation, not the one after the reset")),
            terminated=(bool, Field(False, description="next_state is terminal: its value is 0")),
            truncated=(bool, Field(False, description="cut off here: next_state has a value, and the trace ends")),
        )  # fmt: skip
        self.transition = transition
        many: Any = Annotated[_described(list[transition], minItems=1, maxItems=max_batch), FailFast()]
        self.transitions: Any = create_model("Transitions", __config__=STRICT, transitions=(many, ...))
        # Only whether `transitions` is there: a look at it costs no object per entry, however long it is.
        absent: Any = Literal["absent"]
        self.single: Any = create_model("Single", transitions=(absent, "absent"))
        self.d, self.k, self.discounts = d, k, service.settings.discounts

    def is_single(self, body: bytes) -> bool:
        """Whether a body is one transition rather than {"transitions": [...]}; also if it is neither."""
        try:
            self.single.__pydantic_validator__.validate_json(body)
        except ValidationError as error:
            return error.errors(include_url=False, include_input=False)[0]["loc"] != ("transitions",)
        return True

    def components(self) -> dict[str, Any]:
        """Their schemas, by name, for the OpenAPI description."""
        found: dict[str, Any] = {}
        for model in (self.states, self.transitions):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            found |= schema.pop("$defs", {})
            found[model.__name__] = schema
        return found

    def arrays(self, rows: list[Any]) -> Transitions:
        """Transitions from parsed rows."""
        if self.k == 1:
            cumulants = [[row.reward] for row in rows]
            given = [None if row.discount is None else [row.discount] for row in rows]
        else:
            cumulants, given = [row.cumulants for row in rows], [row.discounts for row in rows]
        discounts = None
        if any(row is not None for row in given):
            discounts = np.array([self.discounts if row is None else row for row in given], np.float64)
        n, d = len(rows), self.d
        return Transitions.of(
            [row.stream for row in rows],
            [row.sequence for row in rows],
            np.array([row.state for row in rows], np.float64).reshape(n, d),
            np.array(cumulants, np.float64).reshape(n, self.k),
            np.array([row.next_state for row in rows], np.float64).reshape(n, d),
            [row.terminated for row in rows],
            [row.truncated for row in rows],
            discounts,
        )

    def in_json(self, error: InvalidRequestError, single: bool) -> InvalidRequestError:
        """The same error of an array, with the path of the field in a JSON body."""
        field, indices = error.field, error.indices
        if self.k == 1 and field in SINGULAR:
            field, indices = SINGULAR[field], indices[:1]
        if indices:
            field, indices = field if single else f"transitions[{indices[0]}].{field}", indices[1:]
        return InvalidRequestError(field, error.message, indices)


SINGULAR = {"cumulants": "reward", "discounts": "discount"}  # fields of a transition with one prediction
REQUIRED = ("stream", "sequence", "state", "cumulants", "next_state")
ARRAYS = (*REQUIRED, "terminated", "truncated", "discounts", "names")
ARRAYS_TEXT = """an npz file as `np.savez` writes it, of n transitions: `stream` (n,) text, or one name for all, or \
(n,) indices into `names`; `sequence` (n,) integers; `state`, `next_state` (n, d); `cumulants` (n, k), the rewards; \
and, optionally, `terminated`, `truncated` (n,) booleans and `discounts` (n, k)."""


def transitions_from(arrays: Mapping[str, np.ndarray]) -> Transitions:
    """Transitions from the arrays of an npz body: the arguments of `Transitions.of`, and `names`."""
    for name in arrays:
        if name not in ARRAYS:
            raise InvalidRequestError(name[:80], f"is not a known array; expected {', '.join(ARRAYS)}")
    for name in REQUIRED:
        if name not in arrays:
            raise InvalidRequestError(name, "is missing")
    parts: dict[str, Any] = dict(arrays)
    stream, names = parts.pop("stream"), parts.pop("names", None)
    text, dimensions = ("stream", (0, 1)) if names is None else ("names", (1,))
    found = stream if names is None else names
    if found.dtype.kind != "U" or found.ndim not in dimensions:
        raise InvalidRequestError(text, f"is {found.dtype} {found.shape}; expected text, or indices and names")
    # Names that end in zero bytes, if that can be seen: NumPy takes them for shorter ones.
    width = found.dtype.itemsize // 4
    if found.size and width > 1 and max(map(len, found.ravel().tolist())) < width:
        raise InvalidRequestError(
            text, f"is {found.dtype}, and every name in it is shorter: zero bytes at the end of a name would be "
            f"lost; expected an array as wide as its longest name, np.array({text}.tolist())",
        )  # fmt: skip
    if names is None:
        return Transitions.of(stream.tolist(), **parts)
    return replace(Transitions.of("", **parts), names=tuple(names.tolist()), stream=stream)


def parse(model: Any, body: bytes) -> Any:
    """The body as an object of the model.

    Raises
    ------
    InvalidRequestError
        400 if it is no JSON, 422 with the field if it is not what the model says.
    """
    if body.count(b":") > MAX_COLONS * max(1, body.count(b"{")):  # before every one of a million fields is described
        raise InvalidRequestError(None, f"the body has too many fields; expected {', '.join(_fields(model))}")
    try:
        return model.__pydantic_validator__.validate_json(body)
    except ValidationError as error:
        raise _first(error, model, body) from None


def _first(error: ValidationError, model: Any, body: bytes) -> InvalidRequestError:
    if error.error_count() > MAX_PROBLEMS:  # so many in one object can only be its fields
        known = ", ".join(_fields(model))
        count = f"{error.error_count():,}"
        return InvalidRequestError(None, f"the body has {count} fields that are wrong or not known; expected {known}")
    problems = error.errors(include_url=False, include_input=True)
    if problems[0]["type"] == "json_invalid":
        reason = problems[0]["msg"].removeprefix("Invalid JSON: ")
        message = f"the body is not JSON: {reason}" if body.strip() else "the body is empty; expected JSON"
        return InvalidRequestError(None, message, status=400)
    # A name that nobody knows is more telling than the field that is then missing.
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = _reason(problem, model) + more
    if not problem["loc"]:
        return InvalidRequestError(None, f"the body {message}")
    return InvalidRequestError(field[:200], message)


def _fields(model: Any) -> list[str]:
    """Those of the innermost objects that a body holds."""
    many = model.model_fields.get("transitions")
    return list(model.model_fields if many is None else many.annotation.__args__[0].model_fields)


def _reason(problem: Any, model: Any) -> str:
    given, context, kind = problem["input"], problem.get("ctx", {}), problem["type"]
    if kind == "extra_forbidden":
        fields = _fields(model) if len(problem["loc"]) > 1 else list(model.model_fields)
        return f"is not a known field; expected {', '.join(fields)}"
    if kind == "missing":
        return "is missing"
    if kind in ("too_short", "too_long"):
        expected = context.get("min_length", context.get("max_length"))
        return f"has {context.get('actual_length', len(given))} entries; expected {expected}"
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else type(given).__name__
    return f"is {shown[:60]}; expected {problem['msg'].removeprefix('Input should be ')}"
