"""What every script says in the terminal: where it prints, errors of one line, and that it compiles.

It loads neither Ray nor Gymnasium, so a script that needs neither starts without them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from valueapprox import CheckpointError
from valueapprox.compiling import cache_folder, cache_is_warm

__all__ = ["announce_compile", "console", "errors_in_one_line"]

console = Console(highlight=False, soft_wrap=True)  # a command that is broken over lines cannot be copied


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what a person can mend into one line on stderr and exit code 2; bugs keep their traceback.

    Where an error has more to say, such as all that is wrong with a table, it follows below.
    """
    try:
        yield
    except (ValueError, TypeError, FileExistsError, FileNotFoundError, ConnectionError, CheckpointError) as error:
        # Ray shows the worker's traceback above the sentence that matters.
        cause = getattr(error, "cause", None)
        shown = cause if isinstance(cause, BaseException) else error
        _fail(str(shown), 2, getattr(shown, "place", ""))
    except FloatingPointError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int, place: str = "") -> None:
    if os.environ.get("VALUEAPPROX_TRACEBACK"):
        raise  # the exception that is being handled
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()] or ["unknown"]
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_plain(lines[0])}")
    if place:
        Console(stderr=True, highlight=False, soft_wrap=True).print(_plain(place))
    sys.exit(code)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def announce_compile(kernel: str = "") -> None:
    """Say that the first run compiles, so that nobody thinks it hangs; `kernel`, module.name, is one that it needs."""
    folder = cache_folder()
    warm = cache_is_warm() and folder is not None
    if not (warm and (not kernel or any(folder.rglob(f"{kernel}-*.nbi")))):  # type: ignore[union-attr]
        console.print("Compiling the kernels, once: this takes ten to thirty seconds.")
