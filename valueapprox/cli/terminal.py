"""What every script does in the terminal: reads options, prints, says that it compiles, ends with errors of one line.

It loads neither Ray nor Gymnasium, so a script that needs neither starts without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import shlex
import shutil
import sys
import typing
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from numba.core import event
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from valueapprox.checkpoint import CheckpointError

__all__ = [
    "announce_compile", "command", "command_line", "console", "errors", "errors_in_one_line", "note", "plain", "typed",
]  # fmt: skip

# A command that is broken over lines cannot be copied; :name: in a folder's name is no picture.
console = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
Options = TypeVar("Options")
MENDABLE = (ValueError, TypeError, FileExistsError, FileNotFoundError, ConnectionError, CheckpointError)

#: What other libraries call an option, and what it is called here; the first ones that a command has are suggested.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lr", "learning-rate", "step-size", "stepsize", "eta"), ("alpha",)),
    **dict.fromkeys(("actor-lr", "policy-lr", "actor-learning-rate"), ("actor-alpha",)),
    **dict.fromkeys(("critic-lr", "value-lr", "q-lr", "critic-learning-rate"), ("alpha",)),
    **dict.fromkeys(("environment", "env-id", "env-name", "gym-id", "task", "game"), ("env",)),
    **dict.fromkeys(("env-kwargs", "env-config"), ("env-args",)),
    **dict.fromkeys(
        ("total-timesteps", "timesteps", "n-timesteps", "num-timesteps", "total-steps", "max-steps", "num-steps",
         "num-frames", "frames", "iterations", "max-iter", "n-iter"),
        ("steps", "epochs"),
    ),
    "n-steps": ("n", "rollout", "steps"),
    "nstep": ("n",),
    "n-step": ("n",),
    **dict.fromkeys(("num-envs", "n-envs", "nenv", "num-environments"), ("envs",)),
    **dict.fromkeys(("algo", "algorithm", "alg", "method", "model-type"), ("agent",)),
    **dict.fromkeys(("discount", "discount-factor", "discount-rate"), ("gamma",)),
    **dict.fromkeys(("lambda", "lamda", "lambd", "lmbda", "gae-lambda", "q-lambda", "td-lambda", "trace-decay"),
                    ("lam",)),
    **dict.fromkeys(("ent-coef", "entropy-coef", "entropy-coeff", "entropy-cost", "entropy-weight"), ("entropy",)),
    **dict.fromkeys(
        ("hidden-sizes", "hidden-size", "hidden-units", "hidden-layers", "layers", "net-arch", "units", "width"),
        ("hidden",),
    ),
    **dict.fromkeys(("eps", "exploration", "exploration-fraction", "exploration-final-eps", "start-e", "end-e",
                     "epsilon-start", "epsilon-end", "epsilon-decay"), ("epsilon",)),
    **dict.fromkeys(("max-grad-norm", "grad-clip", "gradient-clip", "clip-grad-norm"), ("max-grad-norm", "clip-norm")),
    **dict.fromkeys(("num-envs", "n-envs", "vec-envs"), ("envs",)),
    **dict.fromkeys(("num-steps", "rollout-length", "rollout-fragment-length", "unroll-length"),
                    ("rollout",)),
    **dict.fromkeys(("clip-range", "clip-coef", "clip-param", "clip-ratio"), ("clip",)),
    **dict.fromkeys(("vf-coef", "vf-coeff", "value-coef", "baseline-cost"), ("value-weight",)),
    **dict.fromkeys(("target-kl", "kl-target"), ("kl-stop",)),
    **dict.fromkeys(("buffer-size", "memory-size", "replay-size", "replay-buffer-size"), ("capacity",)),
    **dict.fromkeys(("target-update-interval", "target-network-frequency"), ("target-every",)),
    **dict.fromkeys(("num-workers", "n-workers", "n-jobs", "jobs", "num-cpus", "n-cpus"), ("workers",)),
    **dict.fromkeys(("num-seeds", "n-seeds"), ("seeds",)),
    **dict.fromkeys(("random-seed", "rng-seed", "random-state"), ("seed",)),
    **dict.fromkeys(("num-episodes", "n-episodes", "eval-episodes", "n-eval-episodes", "test-episodes"), ("episodes",)),
    **dict.fromkeys(("num-epochs", "n-epochs"), ("epochs",)),
    **dict.fromkeys(("log-dir", "logdir", "log-folder", "output", "output-dir", "outdir", "out-dir", "save-dir",
                     "run-folder", "folder", "tensorboard-log"), ("run-dir", "folder", "out", "data")),
    **dict.fromkeys(("load", "load-model", "restore", "continue", "resume-from", "from-checkpoint", "checkpoint-path"),
                    ("resume", "checkpoint", "model")),
    **dict.fromkeys(("render", "video", "record", "record-video", "capture-video", "movie", "mp4"), ("gif",)),
    **dict.fromkeys(("opt", "optim", "optimiser"), ("optimizer",)),
    **dict.fromkeys(("lr-schedule", "lr-scheduler", "scheduler", "anneal-lr"), ("schedule",)),
    **dict.fromkeys(("activation-fn", "nonlinearity"), ("activation",)),
    **dict.fromkeys(("silent", "verbose", "no-progress", "progress-bar"), ("quiet",)),
    **dict.fromkeys(("address", "cluster", "ray"), ("ray-address",)),
    **dict.fromkeys(("normalize-observations", "normalize-obs", "norm-obs"), ("normalise-observations",)),
    **dict.fromkeys(("normalize-rewards", "normalize-reward", "norm-reward"), ("scale-rewards",)),
    **dict.fromkeys(("n-inputs", "input-dim", "obs-dim", "state-dim"), ("inputs",)),
    **dict.fromkeys(("batchsize", "minibatch-size", "batch-size"), ("batch-size", "batch", "minibatch", "block")),
    **dict.fromkeys(("precision", "float"), ("dtype",)),
}  # fmt: skip
NOT_HERE = dict.fromkeys(("device", "cuda", "gpu", "gpus", "use-cuda", "num-gpus"), "everything runs on the processor")


# --- options ----------------------------------------------------------------------------------------------------------


def command_line(
    cls: type[Options],
    arguments: Sequence[str] | None = None,
    *,
    default: Options | None = None,
    others: Mapping[str, type[Any]] | None = None,
) -> Options:
    """The options of a command, from its dataclass: the docstring is the head of the help.

    Parameters
    ----------
    arguments
        Of the command line; the process's own if not given.
    default
        Values of what is left out, instead of the class's own.
    others
        Further dataclasses of the same command by the option that leads to them: what belongs to one is explained.

    Raises
    ------
    ValueError
        If an option does not exist; the nearest is suggested.
    """
    import tyro

    given = list(sys.argv[1:] if arguments is None else arguments)
    _check_options(given, _options(cls), {lead: _options(other) for lead, other in (others or {}).items()})
    description = _as_started(cls.__doc__ or "")
    if default is None:
        return tyro.cli(cls, description=description, args=given)
    return tyro.cli(cls, description=description, args=given, default=default)


def _as_started(text: str) -> str:
    """A help text whose examples start commands as this one was started: train.py, or valueapprox train."""
    if not sys.argv[0].startswith("valueapprox "):
        return text
    from valueapprox.__main__ import commands

    known = {path.name: name for name, path in commands().items()}
    return re.sub(r"\b\w+\.py\b", lambda m: f"valueapprox {known[m[0]]}" if m[0] in known else m[0], text)


def _options(cls: type[Any]) -> list[str]:
    """Names of a dataclass's options as they are typed, without dashes in front."""
    import tyro

    names: list[str] = []
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if {tyro.conf.Positional, tyro.conf.Suppress} & set(getattr(hint, "__metadata__", ())):
            continue
        kind = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(kind):
            names += _options(typing.cast(Any, kind))
        else:
            renamed = [n for m in getattr(hint, "__metadata__", ()) if (n := getattr(m, "name", None))]
            typed_name = renamed[0] if renamed else name.replace("_", "-")
            names += [typed_name, f"no-{typed_name}"] if kind is bool else [typed_name]
    return names


def _check_options(arguments: Sequence[str], known: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> None:
    for argument in arguments:
        if argument == "--":
            return
        found = re.fullmatch(r"(--[^\W\d_][\w.-]*|-[^\W\d_][\w.-]+)(=.*)?", argument, re.DOTALL)
        if found is None or argument in ("-inf", "-nan"):
            continue
        option = found[1]
        name = option.lstrip("-").replace("_", "-")
        if (name in known and option.startswith("--")) or name in ("help", "help-verbose"):
            continue
        raise ValueError(f"{plain_line(option)} is not an option of {_program()}{_advice(name, known, elsewhere)}")


def _advice(name: str, known: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """What to type instead of an option that does not exist."""
    if name in NOT_HERE:
        return f": {NOT_HERE[name]}"
    if near := _nearest(name, known):
        return f"; did you mean {' or '.join(f'--{n}' for n in near)}?"
    for lead, names in elsewhere.items():
        if near := _nearest(name, names):
            goes = f"goes with {lead}"
            return f"; it {goes}" if near == [name] else f"; did you mean --{near[0]}, which {goes}?"
    return "; --help lists those that there are"


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    if name in known:
        return [name]
    if name in OTHER_NAMES:
        return [n for n in OTHER_NAMES[name] if n in known][:2]
    shown = [n for n in known if not n.startswith("no-") or name.startswith("no-")]
    usable = [n for n, ours in OTHER_NAMES.items() if any(o in known for o in ours)]
    near = difflib.get_close_matches(name, [*shown, *usable], n=1, cutoff=0.7)
    return [] if not near else near if near[0] in known else _nearest(near[0], known)


def _program() -> str:
    return Path(sys.argv[0]).name or "this command"


# --- what is printed --------------------------------------------------------------------------------------------------


def plain(what: object) -> str:
    """Any text, such as the name of a folder, so that `console` prints it as it is and takes nothing for markup."""
    text = plain_line(what)
    escaped = escape(text)  # a backslash at the end is doubled, for the case that markup follows; here none does
    return escaped[:-1] if text.endswith("\\") and not text.endswith("\\\\") else escaped


def plain_line(what: object) -> str:
    """A text without what would steer a terminal: control characters as they are written in Python."""
    return "".join(repr(c)[1:-1] if _steers(c) and c != "\n" else c for c in str(what))


def _steers(character: str) -> bool:
    """Whether it is a control character, or stands for a byte that is no character."""
    return unicodedata.category(character) in ("Cc", "Cs")


def typed(*words: object) -> str:
    """Words of a command so that a shell reads them as they are, whatever names the system allows."""
    return " ".join(map(_quoted, words))


def _quoted(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"  # or it would be read as an option
    if not any(map(_steers, text)):
        return shlex.quote(text)
    # Only $'...' brings such a name through a line of the terminal.
    known = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t", "\r": r"\r"}
    written = (known.get(c) or ("".join(f"\\x{b:02x}" for b in os.fsencode(c)) if _steers(c) else c) for c in text)
    return f"$'{''.join(written)}'"


def command(script: str, *words: object) -> str:
    """What to type, in the folder in which this process was started, to start one of the commands with this Python."""
    here = Path.cwd()
    if sys.argv[0].startswith("valueapprox ") or not SCRIPTS.exists():  # see valueapprox.__main__
        name = Path(script).stem.replace("_", "-")
        if _is_ours(shutil.which("valueapprox")):
            return typed("valueapprox", name, *words)
        return typed(_interpreter(here), "-m", "valueapprox", name, *words)
    place = SCRIPTS / script
    return typed(_interpreter(here), place.relative_to(here) if place.is_relative_to(here) else place, *words)


def _is_ours(program: str | None) -> bool:
    """Whether a program lies beside the Python that runs this."""
    with contextlib.suppress(OSError):
        return program is not None and Path(program).parent.samefile(Path(sys.executable).parent)
    return False


def _interpreter(here: Path) -> Path | str:
    own = Path(sys.executable)
    if _is_ours(shutil.which("python")):
        return "python"
    return own.relative_to(here) if own.is_relative_to(here) else own


def note(sentence: object, where: Console = console) -> None:
    """Print what is worth knowing and no error."""
    where.print(Text.assemble(("note:", "yellow"), " ", plain_line(sentence)))


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what a person can mend into one line on stderr and exit code 2; bugs keep their traceback.

    Where an error has more to say, such as the place in a person's own file or all that is wrong with a table, it
    follows below.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name need not be a text that the terminal's encoding has.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
    except Exception as error:
        # Ray shows the worker's traceback above the sentence that matters.
        cause = getattr(error, "cause", None)
        shown = cause if isinstance(cause, BaseException) else error
        shown = getattr(shown, "fault", shown)  # of the user's own code: see valueapprox.agents.checked
        if hasattr(shown, "place"):
            _fail(str(shown), 2, shown.place)
        elif isinstance(error, MENDABLE):
            _fail(str(shown), 2)
        elif isinstance(error, FloatingPointError):
            _fail(str(error), 1)
        elif isinstance(error, OSError):
            _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error), 1)
        raise
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int, place: str = "") -> None:
    if os.environ.get("VALUEAPPROX_TRACEBACK"):
        raise  # the exception that is being handled
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()] or ["unknown"]
    errors.print(Text.assemble(("error:", "bold red"), " ", plain_line(lines[0])))
    if place:
        errors.print(Text(plain_line(place)))
    sys.exit(code)


# --- compiling --------------------------------------------------------------------------------------------------------


class _Compiling(event.Listener):
    """Speaks up when Numba begins to compile: at the first kernel, once."""

    def __init__(self, where: Console) -> None:
        self.where, self.silent = where, False

    def on_start(self, event: Any) -> None:
        if not self.silent:
            self.silent = True
            self.where.print("Compiling the kernels, once: this takes ten to thirty seconds.")

    def on_end(self, event: Any) -> None:
        pass


def announce_compile(where: Console = console) -> None:
    """From here on, say so when a kernel has to be compiled, so that nobody thinks it hangs."""
    event.register("numba:compile", _Compiling(where))
