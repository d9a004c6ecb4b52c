"""Runs a script with the locks of another file system: `strange_locks.py nfs|none SCRIPT OPTIONS ...`.

nfs: what flock(2) says of NFS, that an exclusive lock wants a descriptor open for writing. none: there are no locks.
"""

import errno
import fcntl
import os
import runpy
import sys
from pathlib import Path

real, kind = fcntl.flock, sys.argv[1]


def flock(file, operation):
    descriptor = file if isinstance(file, int) else file.fileno()
    writes = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    if kind == "none":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    if operation & fcntl.LOCK_EX and not writes:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return real(file, operation)


fcntl.flock = flock
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
