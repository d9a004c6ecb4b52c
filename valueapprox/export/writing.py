"""Writing what is exported to a file, whose suffix says in which format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from valueapprox.checkpoint import write_whole
from valueapprox.checks import one_of
from valueapprox.export.c import to_c
from valueapprox.export.graph import identifier
from valueapprox.export.onnx import to_onnx

__all__ = ["FORMATS", "write"]

#: From what is exported and a name to the bytes of a file, by its suffix. A new format is a line here.
FORMATS = {
    ".onnx": lambda what, name: to_onnx(what, name=name).SerializeToString(),
    ".h": lambda what, name: to_c(what, name=name).encode(),
}


def write(what: Any, path: str | Path, name: str | None = None) -> None:
    """Write what was learned to a file, whole or not at all: ``critic.onnx``, or ``critic.h`` for C.

    Parameters
    ----------
    what
        As for `describe`; a network and its weights as ``describe(net, w)``.
    path
        The suffix says the format.
    name
        With which every name in a header starts, and that of an ONNX graph; if not given, made of the file's.

    Raises
    ------
    ModuleNotFoundError
        If the format needs a package that is not installed.
    TypeError, ValueError
        If it cannot be exported, the suffix is of no format, or the name is none in C.
    """
    path = Path(path)
    content = FORMATS[one_of("the suffix", path.suffix, FORMATS)](what, identifier(path.stem) if name is None else name)
    write_whole(path, lambda file: file.write(content))
