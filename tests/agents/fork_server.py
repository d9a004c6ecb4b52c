"""Starts scripts in processes of their own without paying for their imports each time.

A server has imported what scripts import, and forks. It is asked through a Unix socket, in lines of JSON:
["start", script, [option, ...], working directory, own session], with a pipe each for stdout and stderr, answers the
process id; ["poll", process id] the exit code, or null while it runs. After ["listen", path] it takes what
forked_command.py is asked to run, too: ["valueapprox", word, ...], working directory, environment.
"""

import contextlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path


class Started:
    """A script that was started, with what `subprocess.Popen` has of the same names."""

    def __init__(self, scripts, pid, out, err):
        self._scripts, self.pid, self.returncode = scripts, pid, None
        self.stdout, self.stderr = (os.fdopen(pipe, encoding="utf-8") for pipe in (out, err))

    def poll(self):
        if self.returncode is None:
            self.returncode = self._scripts.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout=300.0):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=300.0):
        texts = {}
        readers = [
            threading.Thread(target=lambda f=file: texts.update({f: f.read()}), daemon=True)
            for file in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Scripts:
    """`scripts("train.py", *options, cwd=".")` runs one of scripts/ to its end; `scripts.start(...)` starts it."""

    folder = Path(__file__).parents[2] / "scripts"

    def __init__(self):
        self._socket, other = socket.socketpair()
        command = [sys.executable, __file__, str(other.fileno())]
        # Pipes as its children have: files that are open already have asked what it is that they write to.
        none, pipe = subprocess.DEVNULL, subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, pass_fds=[other.fileno()])
        other.close()
        self._answers = self._socket.makefile()
        self.commands = None

    def __call__(self, script, *options, cwd="."):
        started = self.start(script, *options, cwd=cwd)
        out, err = started.communicate()
        return subprocess.CompletedProcess([script, *options], started.returncode, out, err)

    def start(self, script, *options, cwd=".", start_new_session=False):
        (out, out_there), (err, err_there) = os.pipe(), os.pipe()
        words = [str(self.folder / script), list(map(str, options)), str(Path(cwd).resolve()), start_new_session]
        pid = self.ask("start", *words, pipes=[out_there, err_there])
        os.close(out_there)
        os.close(err_there)
        return Started(self, pid, out, err)

    def ask(self, *words, pipes=()):
        socket.send_fds(self._socket, [json.dumps(words).encode() + b"\n"], pipes)
        answer = self._answers.readline()
        assert answer, f"the server has ended: {self._server.communicate()[1].decode()}"
        return json.loads(answer)

    def as_commands(self, folder):
        """A folder for PATH, in which `valueapprox` is run by the server."""
        if self.commands is None:
            folder.mkdir()
            self.ask("listen", str(folder / "socket"))
            words = [sys.executable, "-IS", str(Path(__file__).with_name("forked_command.py")), str(folder / "socket")]
            (folder / "valueapprox").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (folder / "valueapprox").chmod(0o755)
            self.commands = folder
        return self.commands

    def close(self):
        self._socket.close()
        self._answers.close()
        self._server.communicate(timeout=60)


# --- in the server ----------------------------------------------------------------------------------------------------


def become(run, cwd, files):
    """In the child: call `run` with these as its first files, and end."""
    code = 1
    try:
        for number, file in files.items():
            os.dup2(file, number)
            os.close(file)
        os.chdir(cwd)
        run()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def script(path, options, own_session):
    """What a child does to be a script."""
    if own_session:
        os.setsid()
    sys.argv, sys.path[0] = [path, *options], str(Path(path).parent)
    runpy.run_path(path, run_name="__main__")


def command(words, environment):
    """What a child does to be the command `valueapprox`."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[:1] = words, filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    valueapprox.__main__.main()


def receive(connection):
    """A request, and the files that came with it; None at the end."""
    request, files = b"", []
    while not request.endswith(b"\n"):
        part, more, *_ = socket.recv_fds(connection, 2**16, 3)
        if not part:
            return None, files
        request, files = request + part, files + more
    return json.loads(request), files


def look_after(client):
    """In a process for each command: start it, say how it ended, and end it if the one who asked has ended."""
    (words, cwd, environment), files = receive(client)
    pid = os.fork()
    if pid == 0:
        client.close()
        become(partial(command, words, environment), cwd, dict(enumerate(files)))
    for file in files:
        os.close(file)
    client.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    if ended not in select.select([client, ended], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(f"{code}\n".encode())
    os._exit(0)


def serve(connection):
    listening, looking_after = None, set()
    while True:
        ready = select.select([connection, listening] if listening else [connection], [], [])[0]
        looking_after = {pid for pid in looking_after if os.waitpid(pid, os.WNOHANG)[0] == 0}
        if listening in ready:
            client, _ = listening.accept()
            pid = os.fork()
            if pid == 0:
                connection.close()
                listening.close()
                look_after(client)
            client.close()
            looking_after.add(pid)
        if connection not in ready:
            continue
        request, pipes = receive(connection)
        if request is None:
            return
        what, *words = request
        if what == "start":
            answer = os.fork()
            if answer == 0:
                connection.close()
                path, options, cwd, own_session = words
                become(partial(script, path, options, own_session), cwd, dict(enumerate(pipes, start=1)))
            for pipe in pipes:
                os.close(pipe)
        elif what == "listen":
            answer, listening = None, socket.socket(socket.AF_UNIX)
            listening.bind(words[0])
            listening.listen()
        else:
            pid, status = os.waitpid(words[0], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        connection.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    # What the scripts import, loaded once.
    # ruff: noqa: F401
    import io

    import gymnasium
    import matplotlib.backends.backend_agg
    import tyro
    from matplotlib.figure import Figure

    import valueapprox.__main__
    import valueapprox.agents.console
    import valueapprox.agents.several
    import valueapprox.agents.sweeps.page
    import valueapprox.agents.sweeps.sweep
    import valueapprox.agents.training
    import valueapprox.agents.verdict
    import valueapprox.cli.pictures
    import valueapprox.service
    import valueapprox.supervised.table_fit

    # What is loaded with the first kernel, and with the first letter that is drawn.
    gymnasium.make("valueapprox/RandomWalk-v0").reset(seed=0)
    figure = Figure()
    figure.subplots().set_title("a")
    figure.savefig(io.BytesIO(), format="png")

    serve(socket.socket(fileno=int(sys.argv[1])))
