"""The journal: records in append-only files with checksums, forced to disk before anybody is told.

A segment is a file journal-FIRST.log, FIRST being the number of its first record. It starts with a header; then
records follow, whose numbers rise by 1 through all segments:

    header   b"VAPXJRN2", first record number (u64), identity (16 bytes), crc32 of these (u32), 0 (u32)
    record   b"VREC", crc32 of all that follows (u32), record number (u64), length of the payload (u64), payload, zeros
             up to a multiple of 8 bytes

All numbers are little-endian. One record is what one fsync covers. So a record behind a damaged one proves that the
damaged one was on disk whole, which is an error. At the very end nothing follows that proves anything. Therefore a
second copy of the last record lies outside the segments, in journal-end-0 or journal-end-1, for even and odd numbers:

    copy     a header that begins with b"VAPXEND1" and has this record's number, then the record

Record and copy are written and forced to disk at the same time, by two threads, and both are on disk before `append`
returns. So a copy is the end mark as well: it claims nothing but what it holds itself, and that all records before it
had been on disk. Whatever order the disk chooses, a loss of power leaves one of these:

    record whole, copy whole or torn    the record is kept, whether its sender was told or not
    record torn, copy whole             the record is taken from the copy
    both torn                           the sender was not told; the torn bytes are cut off; the copy before, in the
                                        other file, says that nothing else is missing

And damage done later to the last segment shows: the last record comes from its copy, and if earlier ones are missing
too, the journal is refused with their numbers. The identity is that of the service, which its checkpoint holds as well.

A record of more than 1 MiB is not written twice, nor one that finds no room for that on a full disk. Once it is on
disk, a header that begins with b"VAPXEND2" takes the place of the copy. It proves as much, but restores nothing.

Version 0.1 wrote segments with the header b"VAPXJRN1", first record number (u64), crc32 of both (u32), 0 (u32), and no
copies. They are read, and new records go to new segments.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from valueapprox.checkpoint import sync_folder, write_whole

__all__ = ["Journal", "JournalError", "Record", "owner", "read"]

HEADER = struct.Struct("<8sQ16sII")
OLD_HEADER = struct.Struct("<8sQII")  # of version 0.1, without an identity
RECORD = struct.Struct("<4sIQQ")
CHECKED = struct.Struct("<QQ")  # what of the record's head the checksum covers, before the payload
MAGIC, OLD_MAGIC, COPY_MAGIC, END_MAGIC, MARK = b"VAPXJRN2", b"VAPXJRN1", b"VAPXEND1", b"VAPXEND2", b"VREC"
NOBODY = bytes(16)  # the identity in a journal that belongs to no service
COPIES = ("journal-end-0", "journal-end-1")
COPY_BYTES = 2**20  # a larger record is not written twice
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALIGN = 8


class JournalError(Exception):
    """A journal that is damaged or incomplete; the message names file and offset. Nothing was changed."""


class Record(NamedTuple):
    """One record."""

    number: int
    payload: bytes


class _Copy(NamedTuple):
    number: int  # of the last record
    record: Record | None  # None: it was not written twice


class _Segment(NamedTuple):
    path: Path
    first: int  # number of its first record


class _Scan(NamedTuple):
    records: list[Record]
    start: int  # size of the header; 0 if it is not whole
    end: int  # offset behind the last good record; 0 if the header is not whole
    size: int  # of the file
    next: int  # number of the record that would follow
    identity: bytes | None  # None: version 0.1 wrote it, or its header is not whole


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


def _header(magic: bytes, number: int, identity: bytes) -> bytes:
    start = magic + number.to_bytes(8, "little") + identity
    return start + zlib.crc32(start).to_bytes(4, "little") + bytes(4)


def _header_of(data: bytes, number: int) -> tuple[int, bytes | None] | None:
    """Size of a segment's header and the identity in it, if it is whole and that of this record number."""
    identity = data[16:32]
    if data[: HEADER.size] == _header(MAGIC, number, identity):
        return HEADER.size, identity
    start = OLD_MAGIC + number.to_bytes(8, "little")
    if data[: OLD_HEADER.size] == start + zlib.crc32(start).to_bytes(4, "little") + bytes(4):
        return OLD_HEADER.size, None
    return None


def _scan(segment: _Segment, last: bool, identity: bytes | None = None) -> _Scan:
    """Every record of a segment. In the last one, what was not written whole is left out; elsewhere it is an error."""
    data = segment.path.read_bytes()
    header = _header_of(data, segment.first)
    if header is None:
        if last and _later_record(data, -1, segment.first) is None:
            return _Scan([], 0, 0, len(data), segment.first, None)
        raise JournalError(f"{segment.path} is damaged at byte 0: its header is not that of a journal's segment")
    offset, owner = header
    if identity is not None and owner is not None:
        _must_belong(segment.path, owner, identity)
    records: list[Record] = []
    start, number = offset, segment.first
    while offset < len(data):
        found = _record_at(data, offset)
        if found is None:
            later = _later_record(data, offset, number)
            if last and later is None:
                break
            what = f"whole records follow from byte {later}" if later is not None else "a later segment follows"
            raise JournalError(
                f"{segment.path} is damaged at byte {offset}, in record {number}: {what}, so it had been on disk "
                "whole. Restore the file, or go on from the checkpoint alone by moving all files journal-* away"
            )
        record, offset_behind = found
        if record.number != number:
            raise JournalError(
                f"{segment.path} is damaged at byte {offset}: it holds record {record.number} where {number} belongs"
            )
        records.append(record)
        offset, number = offset_behind, number + 1
    return _Scan(records, start, offset, len(data), number, owner)


def _must_belong(path: Path, found: bytes, identity: bytes) -> None:
    if found != identity:
        raise JournalError(
            f"the identity in {path} is {found.hex()}; expected {identity.hex()}, that of the checkpoint beside it. "
            "The file is of another service; put this service's own one back"
        )


def _later_record(data: bytes, offset: int, number: int) -> int | None:
    """Where behind an offset a whole record begins whose number is not below `number`; None if nowhere."""
    while (offset := data.find(MARK, offset + 1)) >= 0:
        found = _record_at(data, offset)
        if found is not None and found[0].number >= number:
            return offset
    return None


def _last_copy(folder: Path, identity: bytes | None) -> _Copy | None:
    """The newest copy of a record outside the segments: what is known of the journal's end."""
    found = []
    for name in COPIES:
        path = folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if len(data) < HEADER.size:
            continue
        magic, number, owner, *_ = HEADER.unpack_from(data)
        copied = _record_at(data, HEADER.size)
        if magic == COPY_MAGIC and (copied is None or copied[0].number != number):
            continue
        if magic in (COPY_MAGIC, END_MAGIC) and data[: HEADER.size] == _header(magic, number, owner):
            if identity is not None:
                _must_belong(path, owner, identity)
            found.append(_Copy(number, copied[0] if copied is not None and magic == COPY_MAGIC else None))
    return max(found, key=lambda copy: copy.number, default=None)


def owner(folder: str | Path) -> bytes | None:
    """The identity in the files of a journal, if one is there."""
    folder = Path(folder)
    files = [folder / name for name in COPIES] + [segment.path for segment in segments(folder)]
    for path in files:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            data = file.read(HEADER.size)
            magic, number, identity, *_ = HEADER.unpack(data) if len(data) == HEADER.size else (b"", 0, NOBODY)
            if magic in (MAGIC, COPY_MAGIC, END_MAGIC) and data == _header(magic, number, identity):
                return bytes(identity)
    return None


def _must_be_there(folder: Path, first: int, copy: _Copy | None, scan: _Scan | None, path: Path | None) -> None:
    """Raise if records from `first` on are not there although the copy of a later one proves that they had been."""
    if copy is None or copy.number < first or (copy.number == first and copy.record is not None):
        return
    last = copy.number if copy.record is None else copy.number - 1
    which = (
        f"record {first} of the journal in {folder}"
        if first == last
        else (f"records {first} to {last} of the journal in {folder}")
    )
    if path is None or scan is None:
        where = "there is no segment that could hold what is missing"
    elif scan.next < first:
        where = f"the last segment, {path.name}, ends with record {scan.next - 1}, so a later one is missing"
    elif scan.size > scan.end:
        where = f"{path.name} is damaged at byte {scan.end}, where record {first} begins"
    else:
        where = f"{path.name} ends at byte {scan.end}, before record {first}"
    raise JournalError(
        f"{which} had been on disk, and {'is' if first == last else 'are'} missing: {where}. Restore the file; or, to "
        f"go on without, move {' and '.join(COPIES)} away, which say so"
    )


def read(
    folder: str | Path, position: int = 0, identity: bytes | None = None, *, old_format: bool = True
) -> Iterator[Record]:
    """The records of a journal from number `position` on, in order; reads one segment at a time.

    Parameters
    ----------
    folder
        Where it lies.
    position
        Number of the first record that is wanted.
    identity
        Whose journal it must be; None for anybody's.
    old_format
        Whether records from `position` on may lie in segments of version 0.1, which have no identity.

    Raises
    ------
    JournalError
        If a record before the last one is damaged, records are missing, or the journal belongs to another service.
    """
    folder = Path(folder)
    copy = _last_copy(folder, identity)  # first, so that the segments know at least as much
    found, scan = segments(folder), None
    for i, segment in enumerate(found):
        following = found[i + 1].first if i + 1 < len(found) else None
        if following is not None and following <= position:
            continue
        if segment.first > position:
            raise JournalError(
                f"records {position} to {segment.first - 1} are missing in {folder}: its oldest segment that is needed "
                f"is {segment.path.name}"
            )
        scan = _scan(segment, following is None, identity)
        if following is not None and scan.next != following:
            raise JournalError(f"records {scan.next} to {following - 1} are missing between the segments of {folder}")
        if not old_format and scan.start == OLD_HEADER.size and scan.next > position:
            raise JournalError(
                f"{segment.path} has no identity; expected that of the checkpoint beside it. The file is of another "
                "service, of version 0.1; put this service's own one back"
            )
        yield from (record for record in scan.records if record.number >= position)
        position = max(position, scan.next)
    _must_be_there(folder, position, copy, scan, found[-1].path if found else None)
    if copy is not None and copy.record is not None and copy.number == position:
        yield copy.record


class _Copies:
    """The two files outside the segments that hold the last record once more; see the module."""

    def __init__(self, folder: Path, identity: bytes) -> None:
        self.folder, self.identity = folder, identity
        self._files: dict[Path, int] = {}

    def _path(self, number: int) -> Path:
        return self.folder / COPIES[number % 2]

    def write(self, number: int, record: bytes | None) -> None:
        """Write over the copy before the last one, and force it to disk. None: only say that the record is there."""
        path = self._path(number)
        if path not in self._files:
            self._files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            sync_folder(self.folder)  # also if it was there: who created it, or a segment, may have been killed first
        file = self._files[path]
        if record is not None:
            _write(file, _header(COPY_MAGIC, number, self.identity) + record, 0)
        else:
            _write(file, _header(END_MAGIC, number, self.identity), 0)
            os.ftruncate(file, HEADER.size)
        os.fdatasync(file)

    def spoil(self, number: int) -> None:
        """Empty the copy of a record that could not be written, so that nobody finds it there."""
        with contextlib.suppress(FileNotFoundError):
            file = os.open(self._path(number), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(file, 0)
                os.fsync(file)
            finally:
                os.close(file)

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
        self._identity = NOBODY if identity is None else identity
        self._copies = _Copies(self.folder, self._identity)
        self._helper = ThreadPoolExecutor(1, "valueapprox-journal")  # its thread starts with the first record
        self._file: int | None = None
        self._path: Path | None = None  # of the segment that is written to
        self._start = self._end = 0  # behind its header and its last good record
        self._doubtful = False  # the end is not what it should be: `_mend` is due
        self._last: bytes | None = None  # the last record, while its copy is to be written again
        self._unwritten = False  # that one is in its copy only
        self._failed = False  # a write failed: the copy may hold a record that nobody was told about
        found = segments(self.folder)
        self._sizes = {segment.path: segment.path.stat().st_size for segment in found}
        self._open(found, position, identity, marked)

    def _open(self, found: list[_Segment], position: int, identity: bytes | None, marked: bool) -> None:
        """See how the journal ends, and put that end in order."""
        copy = _last_copy(self.folder, identity)
        self.marked = copy is not None
        scan, path = None, None
        if found:
            path = found[-1].path
            scan = _scan(found[-1], True, identity)
            self.next = max(position, scan.next)
        _must_be_there(self.folder, self.next, copy, scan, path)
        if copy is None:
            n_known = 0 if scan is None or scan.start != HEADER.size else len(scan.records)
            lost, known = marked or n_known > 1, False
        else:
            lag = self.next - 1 - copy.number  # -1: the copy has a record more; 1: the last one was just being copied
            lost = scan is not None and scan.next >= position and lag > 1
            known = lag <= 0
        if lost:
            self.notices.append(
                f"{' and '.join(COPIES)} in {self.folder}, which say how far the journal goes, are missing or damaged: "
                f"whether there were records behind record {self.next - 1} cannot be told"
            )
        if scan is not None and scan.next >= position:  # otherwise the checkpoint knows more: a new segment is begun
            self._path, self._start, self._end = path, scan.start, scan.end
        if copy is not None and copy.record is not None and copy.number == self.next:
            self._last, self._unwritten = _encode(*copy.record), True
            self.notices.append(
                f"record {copy.number} is missing or damaged at the end of the journal; it was restored from "
                f"{COPIES[copy.number % 2]}"
            )
        elif scan is not None and scan.records and scan.next > position:
            self._last = _encode(*scan.records[-1])
        if scan is not None and self._path is not None and scan.size > scan.end:
            self._keep_tail(scan, known)
        if self._unwritten:
            self.next += 1
        if self._path is not None or self._unwritten:
            # Also if all looks well: what a killed process wrote is here, and need not be on disk yet.
            self._doubtful = True
            with contextlib.suppress(OSError):  # a full disk; the next record will try again
                self._mend()

    def _keep_tail(self, scan: _Scan, known: bool) -> None:
        """Say that bytes at the end will be cut off; keep a copy, unless it is known that nobody was told of them."""
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(scan.end)
            tail = file.read()
        if not self._unwritten and not known and _proves_more(tail, scan.next):
            raise JournalError(
                f"{self._path} is damaged at byte {scan.end}, in record {scan.next}: more follows than belongs to it, "
                "so it had been on disk whole. Restore the file, or go on from the checkpoint alone by moving all "
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
            self._mend()
        record = _encode(self.next, payload)
        try:
            self._write_twice(record, len(record) <= COPY_BYTES)
        except OSError as error:
            if self._doubtful or error.errno not in NO_ROOM:
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
                self._mend()
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
        path = self.folder / _name(first)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._close_file()
        self._file, self._path, self._end = file, path, 0
        self._sizes[path] = 0
        _write(file, _header(MAGIC, first, self._identity), 0)
        sync_folder(self.folder)
        self._start = self._end = HEADER.size

    def _mend(self) -> None:
        """Make the end what it should be: nothing behind the last good record, and that one in its copy too.

        The files are opened anew: after an fsync that failed, the old descriptor may say that all is well.
        """
        self._close_file()
        self._copies.close()
        if self._failed:  # first the copy: once the segment is cut, no copy may say that there was more
            self._copies.spoil(self.next)
            self._failed = False
        if self._path is not None:
            old = self._start == OLD_HEADER.size
            if self._end == 0 or (old and self._end == self._start):  # no header, or no record behind an old one
                self._path.unlink(missing_ok=True)
                self._sizes.pop(self._path, None)
                self._path, self._end = None, 0
            else:
                file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.ftruncate(file, self._end)
                    os.fsync(file)
                finally:
                    os.close(file)
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
        """Close the files."""
        self._helper.shutdown()
        self._close_file()
        self._copies.close()


def _proves_more(tail: bytes, number: int) -> bool:
    """Whether bytes that are no whole record begin with the intact head of one and go on behind its end."""
    if len(tail) < RECORD.size:
        return False
    mark, _, found, length = RECORD.unpack_from(tail)
    return mark == MARK and found == number and RECORD.size + length + -length % ALIGN < len(tail)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written
