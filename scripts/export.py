"""Write what was learned as an ONNX model, or as one C header that goes on learning."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from valueapprox.agents.trained import load
from valueapprox.cli.terminal import command_line, console, errors_in_one_line, note, plain
from valueapprox.export import write
from valueapprox.export.c import why_no_update
from valueapprox.export.writing import FORMATS


@dataclass(frozen=True)
class Export:
    """Write what was learned to a file for other programs: an ONNX model (.onnx) or one C header (.h).

    Of a run that acts: the best action, values, and the probabilities of a policy, with the normalisers built in. Of a
    value function, or a service with one prediction: its values, and in C also the TD(lambda) update.

    For example:
      export.py runs/NAME critic.onnx
      export.py runs/NAME agent.h
      export.py runs/NAME firmware/net.h --name critic
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Folder of a run, a fit or a service; or a file: a checkpoint, or what ValueFunction.save wrote."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """File to write; its suffix says the format."""
    name: str | None = None
    """Start of all names in a C header, and name of an ONNX graph; if not given, made of the file's name."""


def main(options: Export) -> int:
    """Export and say what is in the file; returns the exit code."""
    if options.target.suffix not in FORMATS:
        raise ValueError(f"the file to write is {options.target}; expected a name that ends in {' or '.join(FORMATS)}")
    if not options.target.parent.is_dir():
        raise FileNotFoundError(
            f"the file to write is {options.target}; expected a place in a folder that exists: there is no folder "
            f"{options.target.parent}"
        )
    graph = load(options.source).exported()
    try:
        write(graph, options.target, options.name)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from None
    console.print(f"{plain(options.target)}: {plain(graph.about)}")
    console.print(f"  observation ({graph.n_inputs},)", markup=False)
    for output in graph.outputs:
        console.print(f"  {output.name} ({graph.size(output)},)  {plain(output.meaning)}")
    if options.target.suffix == ".h" and (why := why_no_update(graph)):
        note(f"there is no update in it: {why}")
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Export)))
