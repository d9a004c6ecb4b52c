"""The journal: records in append-only files with checksums, forced to disk before anybody is told.

A segment is a file journal-FIRST.log, FIRST being the number of its first record. It starts with a header; then
records follow, whose numbers rise by 1 through all segments:

    header   b"VAPXJRN1", first record number (u64), crc32 of both (u32), 0 (u32)
    record   b"VREC", crc32 of all that follows (u32), record number (u64), length of the payload (u64), payload, zeros
             up to a multiple of 8 bytes

All numbers are little-endian. One record is what one fsync covers. So a record behind a damaged one proves that the
damaged one was on disk whole, which is an error; a damaged record at the very end is one whose writing was interrupted,
which nobody was told about, and it is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Journal", "JournalError", "Record", "read"]

HEADER = struct.Struct("<8sQII")
RECORD = struct.Struct("<4sIQQ")
CHECKED = struct.Struct("<QQ")  # what of the record's head the checksum covers, before the payload
MAGIC, MARK = b"VAPXJRN1", b"VREC"
ALIGN = 8


class JournalError(Exception):
    """A journal that is damaged or incomplete; the message names file and offset. Nothing was changed."""


class Record(NamedTuple):
    """One record."""

    number: int
    payload: bytes


class _Segment(NamedTuple):
    path: Path
    first: int  # number of its first record


class _Scan(NamedTuple):
    records: list[Record]
    end: int  # offset behind the last good record
    size: int  # of the file
    next: int  # number of the record that would follow


def _name(first: int) -> str:
    return f"journal-{first:020d}.log"


def segments(folder: Path) -> list[_Segment]:
    """The segments in a folder, oldest first."""
    found = []
    for path in sorted(folder.glob("journal-*.log")):
        number = path.stem.removeprefix("journal-")
        if not (number.isdigit() and _name(int(number)) == path.name):
            raise JournalError(f"{path} is no segment of a journal; its name holds no record number")
        found.append(_Segment(path, int(number)))
    return found


def _encode(number: int, payload: bytes) -> bytes:
    checked = CHECKED.pack(number, len(payload))
    crc = zlib.crc32(payload, zlib.crc32(checked))
    return MARK + crc.to_bytes(4, "little") + checked + payload + bytes(-len(payload) % ALIGN)


def _record_at(data: bytes, offset: int) -> tuple[Record, int] | None:
    """The record at an offset and the offset behind it; None if there is no whole one."""
    if offset + RECORD.size > len(data):
        return None
    mark, crc, number, length = RECORD.unpack_from(data, offset)
    start = offset + RECORD.size
    stop = start + length
    behind = stop + -length % ALIGN
    if mark != MARK or behind > len(data):
        return None
    payload = data[start:stop]
    if zlib.crc32(payload, zlib.crc32(data[offset + 8 : start])) != crc:
        return None
    return Record(number, payload), behind


def _scan(segment: _Segment, last: bool) -> _Scan:
    """Every record of a segment. In the last one, what was not written whole is left out; elsewhere it is an error."""
    data = segment.path.read_bytes()
    whole = len(data) >= HEADER.size
    if whole:
        magic, first, crc, _ = HEADER.unpack_from(data)
        whole = magic == MAGIC and crc == zlib.crc32(data[:16]) and first == segment.first
    records: list[Record] = []
    offset, number = HEADER.size, segment.first
    if not whole:
        if last and _later_record(data, 0, segment.first) is None:
            return _Scan([], 0, len(data), segment.first)
        raise JournalError(f"{segment.path} is damaged at byte 0: its header is not that of a journal's segment")
    while offset < len(data):
        found = _record_at(data, offset)
        if found is None:
            later = _later_record(data, offset, number)
            if last and later is None:
                break
            what = f"whole records follow from byte {later}" if later is not None else "a later segment follows"
            raise JournalError(
                f"{segment.path} is damaged at byte {offset}, in record {number}: {what}, so it had been on disk "
                "whole. Restore the file, or go on from the checkpoint alone by moving the journal away"
            )
        record, offset_behind = found
        if record.number != number:
            raise JournalError(
                f"{segment.path} is damaged at byte {offset}: it holds record {record.number} where {number} belongs"
            )
        records.append(record)
        offset, number = offset_behind, number + 1
    return _Scan(records, offset, len(data), number)


def _later_record(data: bytes, offset: int, number: int) -> int | None:
    """Where behind an offset a whole record begins whose number is not below `number`; None if nowhere."""
    while (offset := data.find(MARK, offset + 1)) >= 0:
        found = _record_at(data, offset)
        if found is not None and found[0].number >= number:
            return offset
    return None


def read(folder: str | Path, position: int = 0) -> Iterator[Record]:
    """The records of a journal from number `position` on, in order; reads one segment at a time.

    Raises
    ------
    JournalError
        If a record before the last one is damaged, or records are missing.
    """
    found = segments(Path(folder))
    for i, segment in enumerate(found):
        following = found[i + 1].first if i + 1 < len(found) else None
        if following is not None and following <= position:
            continue
        if segment.first > position:
            raise JournalError(
                f"records {position} to {segment.first - 1} are missing in {folder}: its oldest segment that is needed "
                f"is {segment.path.name}"
            )
        scan = _scan(segment, following is None)
        if following is not None and scan.next != following:
            raise JournalError(f"records {scan.next} to {following - 1} are missing between the segments of {folder}")
        yield from (record for record in scan.records if record.number >= position)
        position = max(position, scan.next)


class Journal:
    """Appends records to the journal in a folder.

    Opening it cuts off what was not written whole at its end, and `notices` says so. Whoever opens it must hold the
    folder: two writers would destroy each other's work.

    Parameters
    ----------
    folder
        Where the segments lie.
    position
        Number of the next record, if the journal holds none from there on.
    segment_bytes
        Size at which a new segment is begun.
    """

    def __init__(self, folder: str | Path, position: int = 0, segment_bytes: int = 64 * 2**20) -> None:
        self.folder, self.segment_bytes = Path(folder), segment_bytes
        self.notices: list[str] = []
        self.next = position
        self._file: int | None = None
        self._path: Path | None = None  # of the segment that is written to
        self._end = 0  # behind its last good record
        self._doubtful = False  # a write failed: what lies behind the end is not ours
        found = segments(self.folder)
        self._sizes = {segment.path: segment.path.stat().st_size for segment in found}
        if found:
            scan = _scan(found[-1], last=True)
            if scan.next >= position:
                self.next, self._path, self._end = scan.next, found[-1].path, scan.end
                if scan.size > scan.end or scan.end < HEADER.size:
                    self._cut_off(scan)

    def _cut_off(self, scan: _Scan) -> None:
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(scan.end)
            tail = file.read()
        notice = f"{len(tail)} bytes at the end of {self._path.name}, a record that was not written whole, were cut off"
        if len(tail) >= RECORD.size and tail[:4] == MARK and _length(tail) <= len(tail):
            # All its bytes are there but they are not right: after a loss of power that can be.
            kept = self._path.with_suffix(f".torn-{scan.next}")
            kept.write_bytes(tail)
            notice += f" and kept in {kept.name}"
        self.notices.append(notice)
        self._doubtful = True
        self._mend()

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
            self._mend()
        try:
            if self._path is None or self._end >= self.segment_bytes:
                self._begin_segment()
            assert self._path is not None
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            record = _encode(self.next, payload)
            _write(self._file, record, self._end)
            os.fdatasync(self._file)
        except OSError:
            self._doubtful = True
            with contextlib.suppress(OSError):  # the next call will try again
                self._mend()
            raise
        self._end += len(record)
        self._sizes[self._path] = self._end
        self.next += 1
        return self.next - 1

    def _begin_segment(self) -> None:
        path = self.folder / _name(self.next)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._close_file()
        self._file, self._path, self._end = file, path, 0
        self._sizes[path] = 0
        start = MAGIC + self.next.to_bytes(8, "little")
        _write(file, start + zlib.crc32(start).to_bytes(4, "little") + bytes(4), 0)
        self._end = HEADER.size
        _sync_folder(self.folder)

    def _mend(self) -> None:
        """Take away what a failed write may have left behind the last good record.

        The file is opened anew: after an fsync that failed, the old descriptor may say that all is well.
        """
        self._close_file()
        if self._path is not None:
            if self._end < HEADER.size:  # its header is not whole
                self._path.unlink(missing_ok=True)
                self._sizes.pop(self._path, None)
                self._path, self._end = None, 0
                _sync_folder(self.folder)
            else:
                file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.ftruncate(file, self._end)
                    os.fsync(file)
                finally:
                    os.close(file)
                self._sizes[self._path] = self._end
        self._doubtful = False

    def rotate(self) -> None:
        """Go on in a new segment, so that the present one can be removed once it is covered."""
        if not self._doubtful and self._end > HEADER.size:
            self._close_file()
            self._path, self._end = None, 0

    def forget(self, position: int, retain_bytes: int = 0) -> None:
        """Remove the oldest segments that hold only records before `position`, but for about `retain_bytes`."""
        found = segments(self.folder)
        ends = [*(segment.first for segment in found[1:]), self.next][: len(found)]
        covered = [
            segment.path
            for segment, end in zip(found, ends, strict=True)
            if end <= position and segment.path != self._path
        ]
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
        """Close the file."""
        self._close_file()


def _length(record: bytes) -> int:
    """Size of a record by its own account."""
    length = int(RECORD.unpack_from(record)[3])
    return RECORD.size + length + -length % ALIGN


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
