"""The command `valueapprox`: finds the command of a name and runs it as if its file had been started."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import sys
import types
from pathlib import Path

COMMANDS = Path(__file__).resolve().parent / "commands"
USAGE = "usage: valueapprox COMMAND [OPTIONS]; valueapprox COMMAND --help lists the options of a command"


def commands() -> dict[str, Path]:
    """The file of each command by its name: those of the folder that can be started."""
    files = sorted(COMMANDS.glob("*.py"))
    return {path.stem.replace("_", "-"): path for path in files if '\nif __name__ == "__main__":' in path.read_text()}


def described() -> str:
    """What `valueapprox --help` prints: the first sentence of each file, none of which is imported."""
    known = commands()
    width = max(map(len, known)) + 2
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in known.items()}
    return "\n".join([USAGE, "", *(f"  {name:<{width}}{text.splitlines()[0]}" for name, text in docstrings.items())])


def main() -> None:
    """Run the command that the command line names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(described())
        return
    known = commands()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]}?" if near else "valueapprox --help lists the commands"
        sys.exit(f"error: {name!r} is not a command of valueapprox; {advice}")
    if name.startswith("benchmark") and os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # NumPy, which the package has loaded, reads it on import: one thread needs a new process.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "valueapprox", *sys.argv[1:]])
    module = f"valueapprox.commands.{known[name].stem}"
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} lies in {COMMANDS}"
    code = spec.loader.get_code(module)  # type: ignore[union-attr]
    # Dataclasses of a command look for their types in the module of their name, which is __main__ as for a script.
    own = types.ModuleType("__main__")
    own.__file__, own.__spec__ = spec.origin, None
    sys.modules["__main__"] = own
    sys.argv = [f"valueapprox {name}", *rest]
    exec(code, own.__dict__)


if __name__ == "__main__":
    main()
