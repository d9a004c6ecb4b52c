"""A command that the server of fork_server.py runs: this process lends it its files, its folder and its name.

python -IS forked_command.py SOCKET [WORD ...]    runs `valueapprox WORD ...`, in some 20 ms rather than seconds
"""

import json
import os
import signal
import socket
import sys


def main():
    """Pass on the request and every signal; end as the command ends."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[1])
    request = [["valueapprox", *sys.argv[2:]], os.getcwd(), dict(os.environ)]  # noqa: PTH109  (pathlib takes a while)
    socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
    answers = server.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
