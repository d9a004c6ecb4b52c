"""What decides what a run learns: the settings that all runs have, those of a kind of run, and each agent's own."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self, TypeVar, get_type_hints

import numpy as np

from valueapprox.agents.rollout import resolved_id
from valueapprox.checkpoint import under_new_names
from valueapprox.checks import positive, python_settings

__all__ = ["RunSettings", "resumed_settings"]

#: What may differ on a resume: how far a run goes, and how it is watched.
CHANGEABLE = ("steps", "schedule_steps", "eval_every", "eval_episodes", "stop_at")


@cache
def _with_own(settings: Any, own: Any, defaults: tuple[tuple[str, Any], ...] = ()) -> Any:
    """The class of settings of a kind of run that also has those of an agent, and its defaults."""
    bases = (settings, own) if fields(own) else (settings,)
    types = get_type_hints(settings)  # and not as text, which means something in the settings' own module alone
    changed = [(name, types[name], field(default=value)) for name, value in defaults]
    return make_dataclass(settings.__name__, changed, bases=bases, frozen=True, eq=False)


def _remade(cls: type[Any], values: dict[str, Any]) -> Any:
    return cls(**values)


@dataclass(frozen=True, eq=False)
class RunSettings:
    """What every run has; a kind of run adds its own.

    Each agent may have further settings: a keyword-only dataclass, which `own_of` gives. Settings that are made for an
    agent have those, too: ``ControlSettings(agent="qrc", regularise=0.0)``.
    """

    env: str = "CartPole-v1"
    """Id of a Gymnasium environment; module:Id for one that a module registers."""
    env_args: dict[str, str] = field(default_factory=dict)
    """Arguments of the environment, e.g. --env-args n_states 1000 jump 100 features aggregation."""
    agent: str = ""
    """Who learns."""
    steps: int = 300_000
    """Transitions to learn from."""
    schedule_steps: int = 0
    """Steps for which a schedule is planned; 0 for those of the run. More steps on a resume leave it as planned."""
    seed: int = 0
    """Seed of everything random in the run."""
    gamma: float = 0.99
    """Discount, in [0, 1]."""
    hidden: tuple[int, ...] = (64,)
    """Units of each hidden layer; none for a linear function."""
    activation: str = "relu"
    """Activation of hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    layer_norm: bool = False
    """Normalise the pre-activations of hidden layers."""
    init: str = "he_normal"
    """How weights are drawn: sparse, zeros, lecun_..., glorot_..., he_..._normal or _uniform, orthogonal."""
    dtype: Literal["float32", "float64"] = "float32"
    """dtype of weights and arithmetic."""
    flatten: bool = False
    """Flatten observations that are neither Box nor Discrete into one vector."""
    log_every: int = 0
    """Steps between two points of the log; 0 for fifty points a run."""
    eval_every: int = 0
    """Steps between two evaluations in fresh episodes, in which nothing is learned; 0 for none."""
    eval_episodes: int = 20
    """Fresh episodes of such an evaluation."""

    #: Of the checkpoints of this kind of run.
    kind: ClassVar[str]

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Settings of the class that has the own ones of the agent too."""
        if cls.__mro__[1] is not RunSettings:  # it has the agent's own settings already
            return super().__new__(cls)
        names = [f.name for f in fields(cls)]
        values = dict(zip(names, given, strict=False)) | named
        agent = values.get("agent", cls.agent)
        both: Any = cls, cls.own_of(agent)
        made: Self = object.__new__(_with_own(*both, tuple(cls.defaults_of(agent).items())))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self).__mro__[1], asdict(self))  # the class itself is made where it is needed

    def __post_init__(self) -> None:
        # JSON gives lists; equality wants tuples.
        python_settings(self)
        object.__setattr__(self, "hidden", tuple(int(n) for n in np.atleast_1d(self.hidden)))

    @staticmethod
    def agents() -> Mapping[str, Any]:
        """The agents of this kind of run, by name."""
        raise NotImplementedError

    @classmethod
    def own_of(cls, agent: str) -> type[Any]:
        """The dataclass of the settings that an agent alone has."""
        raise NotImplementedError

    @classmethod
    def defaults_of(cls, agent: str) -> Mapping[str, Any]:
        """The settings whose default is another one for this agent."""
        return {}

    @classmethod
    def of_others(cls, agent: str) -> list[str]:
        """Names of the settings that mean nothing to an agent."""
        return []

    def own(self) -> dict[str, Any]:
        """The settings that the agent alone has."""
        names = [f.name for f in fields(self.own_of(self.agent))]
        if missing := [name for name in names if not hasattr(self, name)]:
            raise ValueError(
                f"agent is {self.agent!r}; expected the one that these settings were made for, as they have no "
                f"{', '.join(missing)}"
            )
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Raise ValueError for what nobody else would notice."""
        positive("steps", self.steps)
        for name in ("log_every", "schedule_steps", "seed", "eval_every"):
            positive(name, getattr(self, name), at_least=0)
        positive("eval_episodes", self.eval_episodes, at_least=2)
        self.own_of(self.agent)(**self.own())

    @property
    def horizon(self) -> int:
        """Steps for which the schedule is planned."""
        return self.schedule_steps or self.steps

    def planned(self) -> tuple[str, str] | None:
        """What is planned for `horizon` steps, and what it does afterwards; None if nothing is."""
        return None

    def __eq__(self, other: object) -> bool:
        """Whether they mean the same run: what is left open counts as what is chosen for it."""
        return type(other) is type(self) and asdict(self.chosen()) == asdict(other.chosen())

    __hash__ = None  # type: ignore[assignment]

    def chosen(self) -> Self:
        """The same with what was left open: the environment's version, and the plan."""
        return replace(self, env=resolved_id(self.env), schedule_steps=self.horizon)

    def arguments(self) -> dict[str, Any]:
        """The environment's arguments, read as numbers, true, false or null where they are."""
        return {name: _parsed_argument(value) for name, value in self.env_args.items()}

    @classmethod
    def names(cls, agent: str) -> list[str]:
        """Names of all settings of a run of an agent."""
        return [f.name for kind in (cls, cls.own_of(agent)) for f in fields(kind)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings as a checkpoint or a configuration file holds them; what is not given is as by default."""
        values, known = under_new_names(values), cls.names(values.get("agent", cls.agent))
        own = {name: value for name, value in values.items() if name in known}
        if isinstance(own.get("optimizer"), dict):  # as settings.json describes one that was left to the agent
            own["optimizer"] = "auto"
        if isinstance(own.get("optimizer"), str):
            own["optimizer"] = own["optimizer"].replace("-", "_")  # as version 0.1 spelled them
        for name in ("env", "policy"):  # up to version 0.2 the packages were called `envs` and `agents`
            if name in own:
                own[name] = re.sub(r"^(?=envs:valueapprox/|agents\.policies:)", "valueapprox.", own[name])
        return cls(**own)


def _parsed_argument(value: Any) -> Any:
    """An environment's argument from the command line: a number, true, false or null where it reads as one."""
    with contextlib.suppress(ValueError):
        return json.loads(value) if isinstance(value, str) else value
    return value


S = TypeVar("S", bound=RunSettings)


def resumed_settings(settings: S | None, stored: S, notice: Callable[[str], None]) -> S:
    """The settings of a resumed run: None for the stored ones, or the same with other steps, or another plan.

    Says what becomes of the plan. Raises ValueError if anything else differs.
    """
    stored = stored.chosen()
    if settings is None:
        return stored
    if not settings.schedule_steps:
        settings = replace(settings, schedule_steps=stored.schedule_steps)
    settings = settings.chosen()
    for name in ("agent", *(f.name for f in fields(stored))):  # with another agent other settings are others, too
        given, old = getattr(settings, name), getattr(stored, name)
        if name not in CHANGEABLE and given != old:
            raise ValueError(
                f"{name} is {given!r}; expected {old!r}, as the run was started with it: only "
                f"{', '.join(CHANGEABLE[:-1])} and {CHANGEABLE[-1]} can change on a resume"
            )
    if (plan := settings.planned()) is not None:
        what, afterwards = plan
        if settings.horizon != stored.horizon:
            notice(
                f"{what} was planned for {stored.horizon:,} steps, and is now stretched over {settings.horizon:,}: "
                "this is not the run that would have been planned so from the start"
            )
        elif settings.steps > max(stored.steps, settings.horizon):
            notice(f"{what} was planned for {stored.horizon:,} steps; afterwards it {afterwards} (--schedule-steps)")
    return settings
