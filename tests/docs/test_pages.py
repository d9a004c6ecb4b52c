"""Every block of code in README and docs runs as it stands, in order; of what cannot run here, each option is known.

A block's first line may say more than its language. `long`: runs with fewer steps. `cluster`, `install`: every command
and option is looked up. Text after a block of Python is what it prints; a caption names the file that a block is for.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tomllib
from importlib.util import find_spec

import pytest
from pages import PAGES, PORT, ROOT, Shell, blocks, commands, free_port, shortened

import valueapprox.__main__

TOOLS = {"source", "tensorboard", "ray"}  # that a reader has or gets, beside what is looked up
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = [name for name, page in zip(NAMES, PAGES, strict=True) if any(b.mark in ("", "long") for b in blocks(page))]
NEEDS_RAY = re.compile(r"^import ray$|--workers [1-9]", re.MULTILINE)


def numbers_apart(text):
    """A text without its numbers, and these: what rounding may change is compared as numbers."""
    number = r"-?\d+\.\d+(?:e[+-]?\d+)?"
    return re.sub(r"\s+", " ", re.sub(number, "#", text)).strip(), [float(x) for x in re.findall(number, text)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.ray] * bool(NEEDS_RAY.search((ROOT / n).read_text()))) for n in RUN]
)
def test_the_blocks_of_a_page_run_as_they_stand(name, tmp_path, tmp_path_factory, monkeypatch, request, start_script):
    page = ROOT / name
    found = [block for block in blocks(page) if block.mark not in ("cluster", "install")]
    typed = "\n".join(block.text for block in found if block.language == "sh")
    for program in ("curl", "cc"):
        if re.search(rf"\b{program}\b", typed) and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if "\nimport onnxruntime\n" in page.read_text() and not find_spec("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    if "import ray\n" in page.read_text():
        request.getfixturevalue("local_ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # Ray's workers look for a page's modules where this process does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    port, namespace, printed = free_port(), {"__name__": "__main__"}, None
    # README's commands are the installed one; those of other pages are run by a process that has loaded all.
    programs = [start_script.as_commands(tmp_path_factory.getbasetemp() / "programs")] if name != "README.md" else []
    shell = Shell(tmp_path, tmp_path_factory.mktemp("shell") / "output", *programs)
    try:
        for block in found:
            text = block.text.replace(PORT, port).replace("valueapprox serve", f"valueapprox serve --port {port}")
            if block.file:
                (tmp_path / block.file).write_text(block.text)
            elif block.language == "python":
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), namespace)
                printed = output.getvalue()
                continue
            elif block.language == "sh":
                shell.run(shortened(text) if block.mark == "long" else text)
            elif block.language == "text":
                assert printed is not None, f"{name}:{block.line}: expected a block of Python before this"
                (is_, values), (expected, wanted) = numbers_apart(printed), numbers_apart(block.text)
                assert is_ == expected, f"{name}:{block.line}"
                assert values == pytest.approx(wanted, rel=0.05, abs=1e-9)
            elif block.language != "bibtex":
                pytest.fail(f"{name}:{block.line}: language is {block.language!r}; expected python, sh or text")
            printed = None
    finally:
        shell.close()
        for module in [m for m, loaded in sys.modules.items() if str(tmp_path) in str(getattr(loaded, "__file__", ""))]:
            del sys.modules[module]


@pytest.fixture(scope="module")
def help_of():
    """`help_of(command, agent)`: the help of a command of valueapprox, for an agent where there is a choice."""
    texts = {}

    def ask(command, agent):
        if (command, agent) not in texts:
            output = io.StringIO()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
                patch.setenv("OPENBLAS_NUM_THREADS", "1")  # without it benchmarks replace the process
                patch.setattr(sys, "argv", ["valueapprox", command, *([agent] if agent else []), "--help"])
                patch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # and put it back
                with pytest.raises(SystemExit):
                    valueapprox.__main__.main()
            texts[command, agent] = output.getvalue()
        return texts[command, agent]

    return ask


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_exists(name, help_of):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(ROOT / name):
        if block.language != "sh" or block.mark not in ("cluster", "install", "long"):
            continue
        for program, *words in commands(block.text):
            where = f"{name}:{block.line}: {program} {' '.join(words)}"
            if program == "valueapprox":
                command, *options = words
                assert command in valueapprox.__main__.commands(), where
                given = [word.partition("=")[0] for word in options if word.startswith("--")]
                agent = None
                if command == "train":
                    agent = options[0] if not options[0].startswith("--") else None
                    agent = options[options.index("--agent") + 1] if "--agent" in options else agent
                    given = [option for option in given if option != "--agent"]
                for option in given:
                    assert re.search(rf"{option}(?![\w-])", help_of(command, agent)), f"{where}: {option}"
            elif program == "make":
                assert set(words) <= targets, where
            elif program == "pip":
                for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
                    assert set(extra.split(",")) <= set(extras), where
            elif program == "python":
                assert (ROOT / words[0]).exists(), where
            else:
                assert program in TOOLS or program.startswith("("), where


def test_files_that_pages_name_are_there():
    for name in NAMES:
        source = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
        source = re.sub(r"valueapprox/\w+-v\d", "", source)  # ids of environments
        for path in re.findall(r"`(?:python )?((?:valueapprox|agents|envs|scripts|tests|docs)/[\w/.-]*)`", source):
            assert "_build" in path or (ROOT / path).exists(), f"{name} names {path}"


def test_readme_is_one_page_with_three_starts():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    starts = [block for block in blocks(readme) if block.mark == ""]
    assert [block.language for block in starts] == ["python", "python", "sh"]
    assert all(len(block.text.splitlines()) <= 15 for block in starts)
    pictures = re.findall(r"!\[.+\]\((.+)\)", readme.read_text())
    assert len(pictures) == 1
    for target in [*pictures, *re.findall(r"(?<!!)\[[^]]+\]\((?!http)([^)#]+)\)", readme.read_text())]:
        assert (ROOT / target).exists(), target
