"""Journal: appends records to the segments in a folder, and puts their end in order when it is opened.

`segments` says what the files hold and why; here they are written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from valueapprox.checkpoint import sync_folder, write_whole
from valueapprox.service import segments
from valueapprox.service.segments import JournalError

__all__ = ["Journal"]

COPY_BYTES = 2**20  # a larger record is not written twice
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Copies:
    """The two files outside the segments that hold the last record once more; see the module."""

    def __init__(self, folder: Path, identity: bytes) -> None:
        self.folder, self.identity = folder, identity
        self._files: dict[Path, int] = {}

    def _path(self, number: int) -> Path:
        return self.folder / segments.COPIES[number % 2]

    def write(self, number: int, record: bytes | None) -> None:
        """Write over the copy before the last one, and force it to disk. None: only say that the record is there."""
        path = self._path(number)
        if path not in self._files:
            self._files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            sync_folder(self.folder)  # also if it was there: who created it, or a segment, may have been killed first
        file = self._files[path]
        if record is not None:
            _write(file, segments.header(segments.COPY_MAGIC, number, self.identity) + record, 0)
        else:
            _write(file, segments.header(segments.END_MAGIC, number, self.identity), 0)
            os.ftruncate(file, segments.HEADER_SIZE)
        os.fdatasync(file)

    def spoil(self, number: int) -> None:
        """Empty the copy of a record that could not be written, so that nobody finds it there."""
        with contextlib.suppress(FileNotFoundError):
            _truncate(self._path(number), 0)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}


class Journal:
    """Appends records to the journal in a folder.

    Opening it cuts off what was not written whole at its end, or restores the last record from its copy, and `notices`
    says so. Whoever opens it must hold the folder: two writers would destroy each other's work.

    Parameters
    ----------
    folder
        Where the segments lie.
    position
        Number of the next record, if the journal holds none from there on.
    segment_bytes
        Size at which a new segment is begun.
    identity
        16 bytes that all files of the journal carry; those of another one are refused. None: anybody's.
    marked
        Whether copies of the last record must be there, since there were some when the checkpoint was written.

    Raises
    ------
    JournalError
        If the end is damaged or missing, and there is no copy of it.
    """

    def __init__(
        self,
        folder: str | Path,
        position: int = 0,
        segment_bytes: int = 64 * 2**20,
        identity: bytes | None = None,
        *,
        marked: bool = False,
    ) -> None:
        self.folder, self.segment_bytes = Path(folder), segment_bytes
        self.notices: list[str] = []
        self.next = position
        self._identity = segments.NOBODY if identity is None else identity
        self._copies = _Copies(self.folder, self._identity)
        self._helper = ThreadPoolExecutor(1, "valueapprox-journal")  # its thread starts with the first record
        self._file: int | None = None
        self._path: Path | None = None  # of the segment that is written to
        self._start = self._end = 0  # after its header and its last good record
        self._doubtful = False  # the end is not what it should be: `_repair` is due
        self._last: bytes | None = None  # the last record, while its copy is to be written again
        self._unwritten = False  # that one is in its copy only
        self._failed = False  # a write failed: the copy may hold a record that nobody was told about
        found = segments.find_segments(self.folder)
        self._sizes = {segment.path: segment.path.stat().st_size for segment in found}
        self._open(found, position, identity, marked)

    def _open(self, found: list[segments.Segment], position: int, identity: bytes | None, marked: bool) -> None:
        """See how the journal ends, and put that end in order."""
        copy = segments.last_copy(self.folder, identity)
        self.marked = copy is not None
        scan, path = None, None
        if found:
            path = found[-1].path
            scan = segments.scan_segment(found[-1], True, identity)
            self.next = max(position, scan.next)
        segments.check_complete(self.folder, self.next, copy, scan, path)
        if copy is None:
            n_known = 0 if scan is None or scan.start != segments.HEADER_SIZE else len(scan.records)
            lost, known = marked or n_known > 1, False
        else:
            lag = self.next - 1 - copy.number  # -1: the copy has a record more; 1: the last one was just being copied
            lost = scan is not None and scan.next >= position and lag > 1
            known = lag <= 0
        if lost:
            self.notices.append(
                f"{' and '.join(segments.COPIES)} in {self.folder} are missing or damaged; expected one that says how "
                f"far the journal goes: whether there were records after record {self.next - 1} cannot be told"
            )
        if scan is not None and scan.next >= position:  # otherwise the checkpoint knows more: a new segment is begun
            self._path, self._start, self._end = path, scan.start, scan.end
        if copy is not None and copy.record is not None and copy.number == self.next:
            self._last, self._unwritten = segments.encode_record(*copy.record), True
            self.notices.append(
                f"record {copy.number} is missing or damaged at the end of the journal; it was restored from "
                f"{segments.COPIES[copy.number % 2]}"
            )
        elif scan is not None and scan.records and scan.next > position:
            self._last = segments.encode_record(*scan.records[-1])
        if scan is not None and self._path is not None and scan.size > scan.end:
            self._keep_tail(scan, known)
        if self._unwritten:
            self.next += 1
        if self._path is not None or self._unwritten:
            # Also if all looks well: what a killed process wrote is here, and need not be on disk yet.
            self._doubtful = True
            with contextlib.suppress(OSError):  # a full disk; the next record will try again
                self._repair()

    def _keep_tail(self, scan: segments.Scan, known: bool) -> None:
        """Say that bytes at the end will be cut off; keep a copy, unless it is known that nobody was told of them."""
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(scan.end)
            tail = file.read()
        if not self._unwritten and not known and segments.proves_more(tail, scan.next):
            raise JournalError(
                f"{self._path} is damaged at byte {scan.end}, in record {scan.next}: more follows than belongs to it, "
                "so it had been on disk whole. Restore the file, or continue from the checkpoint alone by moving all "
                "files journal-* away"
            )
        what = "a damaged record" if self._unwritten else "a record that was not written whole"
        notice = f"{len(tail)} bytes at the end of {self._path.name}, {what}, were cut off"
        if (self._unwritten or not known) and tail.strip(b"\0"):
            kept, i = self._path.with_suffix(f".torn-{scan.next}"), 2
            while kept.exists() and kept.read_bytes() != tail:
                kept, i = self._path.with_suffix(f".torn-{scan.next}-{i}"), i + 1
            try:
                write_whole(kept, lambda file: file.write(tail))
            except OSError as error:
                raise JournalError(
                    f"{len(tail)} bytes at the end of {self._path} are no whole record, and cannot be kept in "
                    f"{kept.name} before they are cut off: {error}. Nothing was changed"
                ) from error
            notice += f" and kept in {kept.name}"
        self.notices.append(notice)

    @property
    def n_bytes(self) -> int:
        """Size of all segments."""
        return sum(self._sizes.values())

    @property
    def n_segments(self) -> int:
        """Number of segments."""
        return len(self._sizes)

    def append(self, payload: bytes) -> int:
        """Write a record and force it to disk; returns its number.

        Raises
        ------
        OSError
            If that fails, as on a full disk. The journal then ends with the record before; the next call tries again.
        """
        if self._doubtful:
            self._repair()
        record = segments.encode_record(self.next, payload)
        try:
            self._write_twice(record, len(record) <= COPY_BYTES)
        except OSError as error:
            if self._doubtful or error.errno not in NO_SPACE:
                raise
            self._write_twice(record, False)  # it may fit once
        self.next += 1
        return self.next - 1

    def _write_twice(self, record: bytes, whole: bool) -> None:
        """Write a record into its segment and its copy, or else the end as it was."""
        try:
            if whole:
                copied = self._helper.submit(self._copies.write, self.next, record)
                try:
                    self._write_record(self.next, record)
                finally:
                    wait([copied])
                copied.result()
            else:  # one after the other: what says that the record is there must not be there first
                self._write_record(self.next, record)
                self._copies.write(self.next, None)
            self._accept(record)
        except OSError:
            self._doubtful = self._failed = True
            with contextlib.suppress(OSError):  # the next call will try again
                self._repair()
            raise

    def _write_record(self, number: int, record: bytes) -> None:
        if self._path is None or self._end >= self.segment_bytes:
            self._begin_segment(number)
        assert self._path is not None
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        _write(self._file, record, self._end)
        os.fdatasync(self._file)

    def _accept(self, record: bytes) -> None:
        assert self._path is not None
        self._end += len(record)
        self._sizes[self._path] = self._end
        self.marked = True

    def _begin_segment(self, first: int) -> None:
        path = self.folder / segments.segment_name(first)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._close_file()
        self._file, self._path, self._end = file, path, 0
        self._sizes[path] = 0
        _write(file, segments.header(segments.MAGIC, first, self._identity), 0)
        sync_folder(self.folder)
        self._start = self._end = segments.HEADER_SIZE

    def _repair(self) -> None:
        """Make the end what it should be: nothing after the last good record, and that one in its copy too.

        The files are opened anew: after an fsync that failed, the old descriptor may say that all is well.
        """
        self._close_file()
        self._copies.close()
        if self._failed:  # first the copy: once the segment is cut, no copy may say that there was more
            self._copies.spoil(self.next)
            self._failed = False
        if self._path is not None:
            old = self._start == segments.OLD_HEADER_SIZE
            if self._end == 0 or (old and self._end == self._start):  # no header, or no record after an old one
                self._path.unlink(missing_ok=True)
                self._sizes.pop(self._path, None)
                self._path, self._end = None, 0
            else:
                _truncate(self._path, self._end)
                self._sizes[self._path] = self._end
                if old:
                    self._path, self._end = None, 0  # new records go to a segment of today's format
        if self._last is not None:
            if self._unwritten:  # first into the segment: its copy is the only one
                self._write_record(self.next - 1, self._last)
                self._accept(self._last)
                self._unwritten = False
            self._copies.write(self.next - 1, self._last if len(self._last) <= COPY_BYTES else None)
            self.marked, self._last = True, None
        self._doubtful = False

    def rotate(self) -> None:
        """Continue in a new segment, so that the present one can be removed once it is covered."""
        if not self._doubtful and self._end > segments.HEADER_SIZE:
            self._close_file()
            self._path, self._end = None, 0

    def forget(self, position: int, retain_bytes: int = 0) -> None:
        """Remove the oldest segments that hold only records before `position`, but for about `retain_bytes`."""
        found = segments.find_segments(self.folder)
        ends = [*(segment.first for segment in found[1:]), self.next]
        covered = [s.path for s, end in zip(found, ends, strict=False) if end <= position and s.path != self._path]
        kept = sum(self._sizes[path] for path in covered)
        for path in covered:
            if kept <= retain_bytes:
                break
            kept -= self._sizes[path]
            path.unlink(missing_ok=True)
            del self._sizes[path]

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Close the files."""
        self._helper.shutdown()
        self._close_file()
        self._copies.close()


def _truncate(path: Path, size: int) -> None:
    """Cut a file, and force that to disk."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(file, size)
        os.fsync(file)
    finally:
        os.close(file)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written
