"""The journal: records in append-only files with checksums, forced to disk before anybody is told.

A segment is a file journal-FIRST.log, FIRST being the number of its first record. It starts with a header; then
records follow, whose numbers rise by 1 through all segments:

    header   b"VAPXJRN2", first record number (u64), identity (16 bytes), crc32 of these (u32), 0 (u32)
    record   b"VREC", crc32 of all that follows (u32), record number (u64), length of the payload (u64), payload, zeros
             up to a multiple of 8 bytes

All numbers are little-endian. One record is what one fsync covers. So a record after a damaged one proves that the
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

A record of more than 1 MiB is not written twice, nor one for which a full disk has no space. Once it is on
disk, a header that begins with b"VAPXEND2" takes the place of the copy. It proves as much, but restores nothing.

Version 0.1 wrote segments with the header b"VAPXJRN1", first record number (u64), crc32 of both (u32), 0 (u32), and no
copies. They are read, and new records go to new segments.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Copy", "JournalError", "Record", "Scan", "Segment", "check_complete", "encode_record", "find_segments",
    "header", "last_copy", "owner", "proves_more", "read", "scan_segment", "segment_name",
]  # fmt: skip

HEADER_SIZE, OLD_HEADER_SIZE = 40, 24  # the latter of version 0.1, without an identity
RECORD = struct.Struct("<4sIQQ")
CHECKED = struct.Struct("<QQ")  # what of the record's head the checksum covers, before the payload
MAGIC, OLD_MAGIC, COPY_MAGIC, END_MAGIC, MARK = b"VAPXJRN2", b"VAPXJRN1", b"VAPXEND1", b"VAPXEND2", b"VREC"
NOBODY = bytes(16)  # the identity in a journal that belongs to no service
COPIES = ("journal-end-0", "journal-end-1")
ALIGN = 8


class JournalError(Exception):
    """A journal that is damaged or incomplete; the message names file and offset. Nothing was changed."""


class Record(NamedTuple):
    """One record."""

    number: int
    payload: bytes


class _Header(NamedTuple):
    magic: bytes
    number: int  # of the first record
    identity: bytes | None  # None: version 0.1 wrote it
    size: int


class Copy(NamedTuple):
    """What a file outside the segments says of the journal's end."""

    number: int  # of the last record
    record: Record | None  # None: it was not written twice


class Segment(NamedTuple):
    """A file of the journal."""

    path: Path
    first: int  # number of its first record


class Scan(NamedTuple):
    """What was found in a segment."""

    records: list[Record]
    start: int  # size of the header; 0 if it is not whole
    end: int  # offset after the last good record; 0 if the header is not whole
    size: int  # of the file
    next: int  # number of the record that would follow


def segment_name(first: int) -> str:
    """The file of the segment that begins with this record."""
    return f"journal-{first:020d}.log"


def find_segments(folder: Path) -> list[Segment]:
    """The segments in a folder, oldest first."""
    found = []
    for path in sorted(folder.glob("journal-*.log")):
        number = path.stem.removeprefix("journal-")
        if not (number.isdigit() and segment_name(int(number)) == path.name):
            raise JournalError(
                f"the name of {path} is not that of a segment; expected journal-NUMBER.log with 20 digits"
            )
        found.append(Segment(path, int(number)))
    return found


def encode_record(number: int, payload: bytes) -> bytes:
    """A record as it lies in a file."""
    checked = CHECKED.pack(number, len(payload))
    crc = zlib.crc32(payload, zlib.crc32(checked))
    return MARK + crc.to_bytes(4, "little") + checked + payload + bytes(-len(payload) % ALIGN)


def _record_at(data: bytes, offset: int) -> tuple[Record, int] | None:
    """The record at an offset and the offset after it; None if there is no whole one."""
    if offset + RECORD.size > len(data):
        return None
    mark, crc, number, length = RECORD.unpack_from(data, offset)
    start = offset + RECORD.size
    stop = start + length
    end = stop + -length % ALIGN
    if mark != MARK or end > len(data):
        return None
    payload = data[start:stop]
    if zlib.crc32(payload, zlib.crc32(data[offset + 8 : start])) != crc:
        return None
    return Record(number, payload), end


def header(magic: bytes, number: int, identity: bytes = b"") -> bytes:
    """The header of a file that begins with a record of this number; without an identity, that of version 0.1."""
    start = magic + number.to_bytes(8, "little") + identity
    return start + zlib.crc32(start).to_bytes(4, "little") + bytes(4)


def _read_header(data: bytes) -> _Header | None:
    """The header at the beginning of a file, if it is whole."""
    size = OLD_HEADER_SIZE if data.startswith(OLD_MAGIC) else HEADER_SIZE
    magic, number, identity = data[:8], int.from_bytes(data[8:16], "little"), data[16 : size - 8]
    if len(data) < size or data[:size] != header(magic, number, identity):
        return None
    return _Header(magic, number, identity or None, size)


def scan_segment(segment: Segment, last: bool, identity: bytes | None = None) -> Scan:
    """Every record of a segment. In the last one, what was not written whole is left out; elsewhere it is an error."""
    data = segment.path.read_bytes()
    head = _read_header(data)
    if head is None or head.magic not in (MAGIC, OLD_MAGIC) or head.number != segment.first:
        if last and _later_record(data, -1, segment.first) is None:
            return Scan([], 0, 0, len(data), segment.first)
        raise JournalError(f"{segment.path} is damaged at byte 0: expected the header of a segment")
    _check_identity(segment.path, head.identity, identity)
    records: list[Record] = []
    offset, number = head.size, segment.first
    while offset < len(data):
        found = _record_at(data, offset)
        if found is None:
            later = _later_record(data, offset, number)
            if last and later is None:
                break
            what = f"whole records follow from byte {later}" if later is not None else "a later segment follows"
            raise JournalError(
                f"{segment.path} is damaged at byte {offset}, in record {number}: {what}, so it had been on disk "
                "whole. Restore the file, or continue from the checkpoint alone by moving all files journal-* away"
            )
        record, end = found
        if record.number != number:
            raise JournalError(
                f"{segment.path} is damaged at byte {offset}: the record is {record.number}; expected {number}"
            )
        records.append(record)
        offset, number = end, number + 1
    return Scan(records, head.size, offset, len(data), number)


def _check_identity(path: Path, found: bytes | None, expected: bytes | None) -> None:
    if found is not None and expected is not None and found != expected:
        raise JournalError(
            f"the identity in {path} is {found.hex()}; expected {expected.hex()}, that of the checkpoint beside it. "
            "The file is of another service; put this service's own one back"
        )


def _later_record(data: bytes, offset: int, number: int) -> int | None:
    """Where after an offset a whole record begins whose number is not below `number`; None if nowhere."""
    while (offset := data.find(MARK, offset + 1)) >= 0:
        found = _record_at(data, offset)
        if found is not None and found[0].number >= number:
            return offset
    return None


def last_copy(folder: Path, identity: bytes | None) -> Copy | None:
    """The newest copy of a record outside the segments: what is known of the journal's end."""
    found = []
    for name in COPIES:
        path = folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        head, copied = _read_header(data), _record_at(data, HEADER_SIZE)
        if head is None or head.magic not in (COPY_MAGIC, END_MAGIC):
            continue
        whole = head.magic == COPY_MAGIC
        if whole and (copied is None or copied[0].number != head.number):
            continue
        _check_identity(path, head.identity, identity)
        found.append(Copy(head.number, copied[0] if copied is not None and whole else None))
    return max(found, key=lambda copy: copy.number, default=None)


def owner(folder: str | Path) -> bytes | None:
    """The identity in the files of a journal, if one is there."""
    folder = Path(folder)
    for path in (*map(folder.joinpath, COPIES), *(segment.path for segment in find_segments(folder))):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            head = _read_header(file.read(HEADER_SIZE))
            if head is not None and head.identity is not None:
                return head.identity
    return None


def proves_more(tail: bytes, number: int) -> bool:
    """Whether bytes that are no whole record begin with the intact head of one and continue after its end."""
    if len(tail) < RECORD.size:
        return False
    mark, _, found, length = RECORD.unpack_from(tail)
    return mark == MARK and found == number and RECORD.size + length + -length % ALIGN < len(tail)


def check_complete(folder: Path, first: int, copy: Copy | None, scan: Scan | None, path: Path | None) -> None:
    """Raise if records from `first` on are not there although the copy of a later one proves that they had been."""
    if copy is None or copy.number < first or (copy.number == first and copy.record is not None):
        return
    last = copy.number if copy.record is None else copy.number - 1
    which, verb = (f"record {first}", "is") if first == last else (f"records {first} to {last}", "are")
    if path is None or scan is None:
        where = "there is no segment that could hold what is missing"
    elif scan.next < first:
        where = f"the last segment, {path.name}, ends with record {scan.next - 1}, so a later one is missing"
    elif scan.size > scan.end:
        where = f"{path.name} is damaged at byte {scan.end}, where record {first} begins"
    else:
        where = f"{path.name} ends at byte {scan.end}, before record {first}"
    raise JournalError(
        f"{which} of the journal in {folder} had been on disk, and {verb} missing: {where}. Restore the file; or, to "
        f"continue without, move {' and '.join(COPIES)} away, which say so"
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
        Number of the first record to read.
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
    copy = last_copy(folder, identity)  # first, so that the segments know at least as much
    found, scan = find_segments(folder), None
    for i, segment in enumerate(found):
        following = found[i + 1].first if i + 1 < len(found) else None
        if following is not None and following <= position:
            continue
        if segment.first > position:
            raise JournalError(
                f"records {position} to {segment.first - 1} are missing in {folder}: its oldest segment that is needed "
                f"is {segment.path.name}"
            )
        scan = scan_segment(segment, following is None, identity)
        if following is not None and scan.next != following:
            raise JournalError(f"records {scan.next} to {following - 1} are missing between the segments of {folder}")
        if not old_format and scan.start == OLD_HEADER_SIZE and scan.next > position:
            raise JournalError(
                f"{segment.path} has no identity; expected that of the checkpoint beside it. The file is of another "
                "service, of version 0.1; put this service's own one back"
            )
        yield from (record for record in scan.records if record.number >= position)
        position = max(position, scan.next)
    check_complete(folder, position, copy, scan, found[-1].path if found else None)
    if copy is not None and copy.record is not None and copy.number == position:
        yield copy.record
