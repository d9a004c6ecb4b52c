"""Starts scripts in processes of their own without paying for their imports each time: reads requests, forks, answers.

A request is a line of JSON, [script, [option, ...], working directory]; the answer [exit code, stdout, stderr].
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

# What the scripts import, loaded once.
# ruff: noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure
import tyro

import valueapprox.agents.console
import valueapprox.agents.several
import valueapprox.agents.training
import valueapprox.agents.verdict
import valueapprox.cli.pictures
import valueapprox.service
import valueapprox.supervised.table_fit


def run(script, options, cwd, out, err):
    """In the child: become the script."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.chdir(cwd)
    sys.argv, sys.path[0] = [script, *options], str(Path(script).parent)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve():
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            pid = os.fork()
            if pid == 0:
                run(*json.loads(line), out, err)
            _, status = os.waitpid(pid, 0)
            out.seek(0)
            err.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), out.read(), err.read()]), flush=True)


if __name__ == "__main__":
    serve()
