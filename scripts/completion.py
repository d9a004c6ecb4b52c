"""Print what completes the commands of valueapprox in a shell, with their options."""

from __future__ import annotations

import importlib
import sys
import typing
from dataclasses import dataclass, make_dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import tyro

from valueapprox.__main__ import commands
from valueapprox.cli.terminal import command_line, errors_in_one_line


@dataclass(frozen=True)
class Completion:
    """Print what completes `valueapprox` in a shell: its commands, their options, and the values that are words.

      bash: valueapprox completion bash > ~/.local/share/bash-completion/completions/valueapprox
      zsh:  valueapprox completion zsh > ~/.zfunc/_valueapprox, where ~/.zfunc is in fpath
      fish: valueapprox completion fish > ~/.config/fish/completions/valueapprox.fish

    It takes a few seconds, since all commands are loaded. Print it again after an update.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Shell for which it is printed."""


def subcommand(name: str, stem: str) -> Any:
    """The dataclass of a command, as a subcommand; words that it takes first are subcommands of their own."""
    module = importlib.import_module(f"valueapprox.commands.{stem}")
    hint = typing.get_type_hints(module.main, include_extras=True)["options"]
    cls = (typing.get_args(hint) or (hint,))[0]
    words = [_named(word, kind) for word, kind in getattr(module, "words", dict)().items()]
    if words:
        cls = make_dataclass(cls.__name__, [("word", reduce(or_, words))], bases=(cls,), frozen=True, kw_only=True)
    return _named(name, cls)


def _named(name: str, cls: type[Any]) -> Any:
    return Annotated[cls, tyro.conf.subcommand(name, prefix_name=False)]


def main(options: Completion) -> int:
    """Print it."""
    kinds = [subcommand(name, path.stem) for name, path in commands().items()]
    tyro.cli(reduce(or_, kinds), prog="valueapprox", args=["--tyro-print-completion", options.shell])
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Completion)))
