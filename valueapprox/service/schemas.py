"""What JSON bodies hold: models of answers, and models of requests made from one service's shapes.

So the OpenAPI description says exactly what is taken: how many numbers a state has, how large they may be, and which
fields there are. Arrays in npz bodies are checked here too, by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, create_model

from valueapprox.checks import positive
from valueapprox.service.bodies import BodyError, numbers
from valueapprox.service.messages import (
    STATUS_NAMES,
    Gradients,
    LearnResult,
    Norms,
    ServiceSettings,
    Transitions,
    Values,
    Weights,
)

__all__ = ["ARRAYS_TEXT", "Limits", "Requests", "Served", "parse", "transitions_from"]

LATEST_SEQUENCE = 2**63 - 1
MOST_COLONS = 250  # of an object: a transition has nine fields, and the name of its stream may hold 200
MOST_PROBLEMS = 1000  # that are looked at one by one
STRICT = ConfigDict(extra="forbid", strict=True)


class Served(Protocol):
    """What the application needs of a service; see `Service`."""

    settings: ServiceSettings
    n_inputs: int
    n_predictions: int
    names: tuple[str, ...]

    @property
    def version(self) -> int: ...  # noqa: D102
    def submit(self, batch: Transitions) -> Future[LearnResult]: ...  # noqa: D102
    def values(self, states: np.ndarray) -> Values: ...  # noqa: D102
    def gradients(self, states: np.ndarray, output: int = 0) -> Gradients: ...  # noqa: D102
    def weights(self) -> Weights: ...  # noqa: D102
    def norms(self) -> Norms: ...  # noqa: D102
    def load_weights(self, weights: np.ndarray) -> int: ...  # noqa: D102
    def health(self) -> dict[str, Any]: ...  # noqa: D102
    def diagnostics(self) -> dict[str, float]: ...  # noqa: D102


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


class Error(BaseModel):
    """The body of every answer that is no success."""

    error: Problem
    version: int


class ValuesAnswer(BaseModel):
    """The predictions at each state."""

    values: list[list[float | None]] = Field(description="(n, k); null where a number is too large for the network")
    version: int = Field(description="of the weights, the same for all of the answer")


class GradientsAnswer(BaseModel):
    """How a prediction changes with each input."""

    gradients: list[list[float | None]] = Field(description="(n, d), d v / d s")
    version: int


class NormsAnswer(BaseModel):
    """Euclidean norm of each layer's weights."""

    norms: dict[str, float]
    version: int


class WeightsAnswer(BaseModel):
    """The weights w, one row per network, and where each block lies in a row."""

    w: list[list[float]]
    blocks: dict[str, list[Any]] = Field(description="name: [where it starts in a row, its shape]")
    net: dict[str, Any]
    names: list[str]
    version: int


class VersionAnswer(BaseModel):
    """The version of the weights from now on."""

    version: int


class OneLearned(BaseModel):
    """What became of a transition."""

    status: Literal[STATUS_NAMES]  # type: ignore[valid-type]
    td_errors: list[float] | None = Field(description="one per prediction, before the update; null if not learned")
    expected: int | None = Field(description="the sequence number that was due, after a gap")
    version: int
    error: Problem | None = None


class ManyLearned(BaseModel):
    """What became of transitions, in their order."""

    learned: int
    duplicates: int
    rejected: int
    diverged: int
    status: list[Literal[STATUS_NAMES]]  # type: ignore[valid-type]
    td_errors: list[list[float] | None]
    expected: list[int | None]
    version: int
    error: Problem | None = None


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"]
    version: int


class Ready(BaseModel):
    """Whether values are served, and whether anything is learned."""

    ready: bool
    learning: bool
    reason: str | None
    version: int


class About(BaseModel):
    """What is served."""

    inputs: int
    predictions: list[str]
    discounts: list[float]
    lams: list[float]
    network: dict[str, Any]
    separate: bool
    read_only: bool
    durability: str
    on_gap: str
    max_batch: int = Field(description="transitions in a request")
    max_states: int = Field(description="states in a request")
    max_body: int = Field(description="bytes of a body")
    version: int


# --- requests ---


def _whole(value: Any) -> Any:
    """7.0 is an integer in JSON, which knows one kind of number."""
    return int(value) if type(value) is float and value.is_integer() else value


class Requests:
    """The models of requests to one service: how many numbers a state has is part of them.

    A number may be as large as the network's float type holds. One prediction has a `reward` and a `discount`; several
    have `cumulants` and `discounts`.
    """

    def __init__(self, service: Served, limits: Limits) -> None:
        d, k = service.n_inputs, service.n_predictions
        most = float(np.finfo(service.settings.net.dtype).max)
        number: Any = Annotated[float, Field(ge=-most, le=most, allow_inf_nan=False)]
        unit: Any = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
        # Lists end at their first wrong entry: every one of a million would cost seconds and gigabytes to describe.
        state: Any = Annotated[list[number], Field(min_length=d, max_length=d), FailFast()]
        states: Any = Annotated[list[state], Field(min_length=1, max_length=limits.max_states), FailFast()]
        signals: dict[str, Any]
        if k == 1:
            signals = {
                "reward": (number, Field(description="what is summed up, from state to next_state")),
                "discount": (unit | None, Field(None, description="of this transition, instead of the service's")),
            }
        else:
            signals = {
                "cumulants": (
                    Annotated[list[number], Field(min_length=k, max_length=k)],
                    Field(description=f"the signals of {', '.join(service.names)}"),
                ),
                "discounts": (
                    Annotated[list[unit], Field(min_length=k, max_length=k)] | None,
                    Field(None, description="of this transition, instead of the service's"),
                ),
            }
        self.states = create_model("States", __config__=STRICT, states=(states, ...))
        name = Field(min_length=1, max_length=200, description="printable", json_schema_extra={"format": "printable"})
        transition: Any = create_model(
            "Transition",
            __config__=STRICT,
            stream=(Annotated[str, name], ...),
            sequence=(
                Annotated[int, Field(ge=0, le=LATEST_SEQUENCE), BeforeValidator(_whole)],
                Field(description="number of the transition in its stream; the next one has the next number"),
            ),
            state=(state, ...),
            **signals,
            next_state=(state, Field(description="at an ending the last observation, not the one after the reset")),
            terminated=(bool, Field(False, description="next_state is terminal: its value is 0")),
            truncated=(bool, Field(False, description="cut off here: next_state has a value, and the trace ends")),
        )
        self.transition = transition
        most_rows = Field(min_length=1, max_length=service.settings.max_batch)
        many: Any = Annotated[list[transition], most_rows, FailFast()]
        self.transitions: Any = create_model("Transitions", __config__=STRICT, transitions=(many, ...))
        # Only whether `transitions` is there: a look at it costs no object per entry, however long it is.
        there: Any = Literal["not there"]
        self.single: Any = create_model("Single", transitions=(there, "not there"))
        self.k, self.discounts = k, service.settings.discounts

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
        """Transitions from validated rows."""
        n = len(rows)
        places: dict[str, int] = {}
        for row in rows:
            places.setdefault(row.stream, len(places))
        if self.k == 1:
            cumulants = [[row.reward] for row in rows]
            given = [None if row.discount is None else [row.discount] for row in rows]
        else:
            cumulants, given = [row.cumulants for row in rows], [row.discounts for row in rows]
        discounts = None
        if any(row is not None for row in given):
            discounts = np.array([self.discounts if row is None else row for row in given], np.float64)
        return Transitions(
            names=tuple(places),
            stream=np.fromiter((places[row.stream] for row in rows), np.int64, n),
            sequence=np.fromiter((row.sequence for row in rows), np.int64, n),
            state=np.array([row.state for row in rows], np.float64),
            cumulants=np.array(cumulants, np.float64),
            next_state=np.array([row.next_state for row in rows], np.float64),
            terminated=np.fromiter((row.terminated for row in rows), np.bool_, n),
            truncated=np.fromiter((row.truncated for row in rows), np.bool_, n),
            discounts=discounts,
        )


ARRAYS = ("stream", "sequence", "state", "cumulants", "next_state", "terminated", "truncated", "discounts", "names")
ARRAYS_TEXT = """an npz file as `np.savez` writes it, of n transitions: `stream` (n,) text, or one name for all, or \
(n,) indices into `names`; `sequence` (n,) integers; `state`, `next_state` (n, d); `cumulants` (n, k), the rewards; \
and, if wanted, `terminated`, `truncated` (n,) booleans and `discounts` (n, k)."""


def transitions_from(arrays: Mapping[str, np.ndarray], service: Served) -> Transitions:
    """Transitions from the arrays of an npz body, each named if it is wrong."""
    for name in arrays:
        if name not in ARRAYS:
            raise BodyError(422, name[:80], f"is not known; there are {', '.join(ARRAYS)}")
    for name in ("stream", "sequence", "state", "cumulants", "next_state"):
        if name not in arrays:
            raise BodyError(422, name, "is missing")
    d, k, dtype = service.n_inputs, service.n_predictions, service.settings.net.dtype
    state = numbers("state", arrays["state"], dtype, (None, d))
    n = len(state)
    if not 1 <= n <= service.settings.max_batch:
        raise BodyError(422, "state", f"has {n} transitions; 1 to {service.settings.max_batch} are taken at a time")
    cumulants = arrays["cumulants"]
    if k == 1 and cumulants.ndim == 1:
        cumulants = cumulants[:, None]
    names, stream = _streams(arrays, n)
    discounts = None
    if "discounts" in arrays:
        given = arrays["discounts"]
        discounts = numbers("discounts", given[:, None] if k == 1 and given.ndim == 1 else given, np.float64, (n, k))
    return Transitions(
        names=names,
        stream=stream,
        sequence=_integers("sequence", arrays["sequence"], n),
        state=state,
        cumulants=numbers("cumulants", cumulants, np.float64, (n, k)),
        next_state=numbers("next_state", arrays["next_state"], dtype, (n, d)),
        terminated=_booleans("terminated", arrays.get("terminated"), n),
        truncated=_booleans("truncated", arrays.get("truncated"), n),
        discounts=discounts,
    )


def _must_fill(field: str, names: np.ndarray) -> None:
    """Refuse names that end in zero bytes, if that can be seen: NumPy takes them for shorter ones."""
    width = names.dtype.itemsize // 4
    if names.size and width > 1 and max(map(len, names.ravel().tolist())) < width:
        raise BodyError(
            422, field, f"is {names.dtype}, and every name in it is shorter: zero bytes at the end of a name would be "
            f"lost; expected an array as wide as its longest name, np.array({field}.tolist())",
        )  # fmt: skip


def _streams(arrays: Mapping[str, np.ndarray], n: int) -> tuple[tuple[str, ...], np.ndarray]:
    stream = arrays["stream"]
    if "names" in arrays:
        names = arrays["names"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise BodyError(422, "names", f"is {names.dtype} {names.shape}; text (m,) is wanted")
        _must_fill("names", names)
        index = _integers("stream", stream, n)
        if index.max() >= len(names):
            raise BodyError(422, "stream", f"holds {index.max()}; there are {len(names)} names")
        return tuple(names.tolist()), index
    if stream.dtype.kind != "U" or stream.shape not in ((), (n,)):
        raise BodyError(422, "stream", f"is {stream.dtype} {stream.shape}; text () or ({n},) is wanted, or names too")
    _must_fill("stream", stream)
    if stream.shape == ():
        return (str(stream),), np.zeros(n, np.int64)
    found, index = np.unique(stream, return_inverse=True)
    return tuple(found.tolist()), index.astype(np.int64)


def _integers(field: str, array: np.ndarray, n: int) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.shape != (n,):
        raise BodyError(422, field, f"is {array.dtype} {array.shape}; integers ({n},) are wanted")
    wrong = (array < 0) | (array > LATEST_SEQUENCE)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise BodyError(422, f"{field}[{place}]", f"is {array[place]}; 0 to {LATEST_SEQUENCE} are taken")
    return array.astype(np.int64)


def _booleans(field: str, array: np.ndarray | None, n: int) -> np.ndarray:
    if array is None:
        return np.zeros(n, np.bool_)
    if array.dtype.kind != "b" or array.shape != (n,):
        raise BodyError(422, field, f"is {array.dtype} {array.shape}; booleans ({n},) are wanted")
    return array.copy()


def parse(model: Any, body: bytes) -> Any:
    """The body as an object of the model.

    Raises
    ------
    BodyError
        400 if it is no JSON, 422 with the field if it is not what the model says.
    """
    if body.count(b":") > MOST_COLONS * max(1, body.count(b"{")):  # before every one of a million fields is described
        raise BodyError(422, None, f"has more fields than there are; there are {', '.join(_fields(model))}")
    try:
        return model.__pydantic_validator__.validate_json(body)
    except ValidationError as error:
        raise _first(error, model, body) from None


def _first(error: ValidationError, model: Any, body: bytes) -> BodyError:
    if error.error_count() > MOST_PROBLEMS:  # so many in one object can only be its fields
        known = ", ".join(_fields(model))
        return BodyError(
            422, None, f"has {error.error_count():,} fields that are wrong or not known; there are {known}"
        )
    problems = error.errors(include_url=False, include_input=True)
    if problems[0]["type"] == "json_invalid":
        if not body.strip():
            return BodyError(400, None, "the body is empty; JSON is wanted")
        return BodyError(400, None, problems[0]["msg"].replace("Invalid JSON", "the body is not JSON"))
    # A name that nobody knows is more telling than the field that is then missing.
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return BodyError(422, field[:200] if problem["loc"] else None, _reason(problem, model) + more)


def _fields(model: Any) -> list[str]:
    """Those of the innermost objects that a body holds."""
    many = model.model_fields.get("transitions")
    return list(model.model_fields if many is None else many.annotation.__args__[0].model_fields)


def _reason(problem: Any, model: Any) -> str:
    given, context = problem["input"], problem.get("ctx", {})
    kind = problem["type"]
    if kind == "extra_forbidden":
        fields = _fields(model) if len(problem["loc"]) > 1 else list(model.model_fields)
        return f"is not a known field; there are {', '.join(fields)}"
    if kind == "missing":
        return "is missing"
    if kind in ("too_short", "too_long"):
        low, high = context.get("min_length"), context.get("max_length")
        wanted = f"at least {low}" if high is None else f"at most {high}"
        return f"has {context.get('actual_length', len(given))} entries; {wanted} are wanted"
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else type(given).__name__
    message = problem["msg"].replace("Input should", "it should").replace("Object should", "it should")
    return f"is {shown[:60]}; {message[0].lower()}{message[1:]}"
