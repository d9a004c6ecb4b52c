"""README and the pages of docs/ as a reader finds them: their blocks of code, and a shell to type commands into."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.name != "adding.md" and "_build" not in page.parts]  # tests/test_adding.py
MARKS = {"", "long", "cluster", "install"}
FENCE = re.compile(r"^(`{3,})[ ]*(\S*)[ ]*(.*)\n((?:.*\n)*?)\1[ ]*$", re.MULTILINE)
PORT = "8800"
STEPS = 2000  # of a run that is marked as long


@dataclass(frozen=True)
class Block:
    """One block of code: its language, its mark, the file that it is for, and the line at which it begins."""

    language: str
    mark: str
    file: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """All blocks of a page but those that Sphinx alone reads."""
    found, source = [], page.read_text()
    for fence in FENCE.finditer(source):
        _, language, mark, text = fence.groups()
        line, file = source.count("\n", 0, fence.start()) + 2, ""
        if language == "{code-block}":
            caption = re.match(r":caption: (\S+)\n\n", text)
            assert caption, f"{page.name}:{line}: a code-block without a caption, the file that it is"
            language, mark, file, text = mark, "", caption[1], text[caption.end() :]
        elif language.startswith("{"):
            continue
        assert mark in MARKS, f"{page.name}:{line}: mark is {mark!r}; expected one of {MARKS}"
        found.append(Block(language, mark, file, text, line))
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a shell's block, as words; comments and redirections are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def shortened(text: str) -> str:
    """A long run as a short one."""
    return re.sub(r"--steps \d+", f"--steps {STEPS}", text)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


class Shell:
    """A bash that is given the blocks of one page, one after the other; a command that fails ends it.

    What it prints goes to a file: servers that it has started hold a pipe open after its end. `programs` are folders
    whose programs are found first.
    """

    def __init__(self, folder: Path, output: Path, *programs: Path) -> None:
        path = os.pathsep.join([*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                ["bash", "-e"],
                cwd=folder,
                env={**os.environ, "PATH": path, "NO_COLOR": "1"},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, text: str) -> None:
        """Type a block, and wait until the prompt would come back."""
        assert self.process.stdin is not None
        done = self.output.with_suffix(".done")
        self.process.stdin.write(f"{text}\necho > {shlex.quote(str(done))}\n")
        self.process.stdin.flush()
        while not done.exists():
            if self.process.poll() is not None:
                raise AssertionError(f"a command failed in\n{text}\nafter this was printed\n{self.output.read_text()}")
            time.sleep(0.02)
        done.unlink()

    def close(self) -> None:
        """End it and everything that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
