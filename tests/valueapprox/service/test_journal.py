"""The journal: what was appended is read back, what was torn is cut off, what is damaged is an error."""

import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from valueapprox.service.journal import Journal
from valueapprox.service.segments import COPIES, HEADER_SIZE, RECORD, JournalError, owner, read


def payloads(folder, position=0):
    return [(record.number, record.payload) for record in read(folder, position)]


def names_in(folder):
    return sorted(path.name for path in folder.glob("*.log"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder, n=5, segment_bytes=2**20, position=0):
    """A journal of n records of 10 bytes each; a record takes 24 + 16 bytes, a segment's header 40."""
    journal = Journal(folder, position, segment_bytes)
    for i in range(position, position + n):
        assert journal.append(b"record %3d" % i) == i
    journal.close()
    return [(i, b"record %3d" % i) for i in range(position, position + n)]


def test_what_was_appended_is_read_back(tmp_path):
    expected = written(tmp_path)
    assert payloads(tmp_path) == expected
    assert payloads(tmp_path, 3) == expected[3:]
    assert payloads(tmp_path, 5) == payloads(tmp_path, 99) == []
    file = tmp_path / "journal-00000000000000000000.log"
    assert file.stat().st_size == HEADER_SIZE + 5 * (RECORD.size + 16)
    # The last two records, 3 and 4, once more.
    assert sorted(contents(tmp_path)) == [file.name, "journal-end-0", "journal-end-1"]
    data = file.read_bytes()
    for number in (3, 4):
        copy = (tmp_path / COPIES[number % 2]).read_bytes()
        assert copy[HEADER_SIZE:] == data[40 + 40 * number : 80 + 40 * number]


def test_an_empty_payload_is_a_record(tmp_path):
    journal = Journal(tmp_path)
    journal.append(b"")
    assert payloads(tmp_path) == [(0, b"")]


def test_it_goes_on_where_it_was_closed(tmp_path):
    expected = written(tmp_path)
    journal = Journal(tmp_path)
    assert journal.next == 5
    assert journal.notices == []
    journal.append(b"more")
    assert payloads(tmp_path) == [*expected, (5, b"more")]


def test_segments_are_begun_at_their_size_and_forgotten_once_covered(tmp_path):
    # 40 + 40 + 40 = 120 >= 100: two records in each segment
    expected = written(tmp_path, 7, segment_bytes=100)
    names = [f"journal-{first:020d}.log" for first in (0, 2, 4, 6)]
    assert names_in(tmp_path) == names
    assert payloads(tmp_path) == expected
    journal = Journal(tmp_path, 0, 100)
    assert (journal.n_segments, journal.n_bytes) == (4, 4 * 40 + 7 * 40)
    journal.forget(5)  # record 5 lies in the segment of 4, which is kept
    assert names_in(tmp_path) == names[2:]
    assert payloads(tmp_path, 4) == expected[4:]
    with pytest.raises(JournalError, match=r"records 3 to 3 are missing in .*journal-00000000000000000004"):
        payloads(tmp_path, 3)
    journal.rotate()
    journal.forget(7)
    assert names_in(tmp_path) == []
    assert (journal.n_segments, journal.n_bytes) == (0, 0)
    assert journal.append(b"on") == 7


def test_some_of_what_is_covered_may_be_kept(tmp_path):
    written(tmp_path, 7, segment_bytes=100)
    journal = Journal(tmp_path, 0, 100)
    journal.rotate()
    journal.forget(7, retain_bytes=200)  # of 120, 120, 120 and 80 bytes the last two are 200
    assert [record.number for record in read(tmp_path, 4)] == [4, 5, 6]
    assert journal.n_bytes == 200


def test_a_journal_may_begin_anywhere(tmp_path):
    expected = written(tmp_path, 3, position=17)
    assert payloads(tmp_path, 17) == expected
    assert Journal(tmp_path, 17).next == 20


def test_it_goes_on_behind_a_checkpoint_that_knows_more(tmp_path):
    # The checkpoint is at 10, the journal ends with 4: what lies between is in the checkpoint.
    written(tmp_path)
    journal = Journal(tmp_path, 10)
    assert journal.append(b"on") == 10
    assert payloads(tmp_path, 10) == [(10, b"on")]
    with pytest.raises(JournalError, match="records 5 to 9 are missing between"):
        payloads(tmp_path, 0)


# --- what a crash leaves ----------------------------------------------------------------------------------------------


def test_a_record_cut_anywhere_that_nobody_was_told_about_is_cut_off(tmp_path):
    # Records 0 and 1 were acknowledged; of record 2 some bytes were written, and its copy was not.
    expected = written(tmp_path, 2)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    third = whole[-40:-24] + (2).to_bytes(8, "little") + whole[-16:]
    for torn in range(40):
        file.write_bytes(whole + third[:torn])
        assert payloads(tmp_path) == expected
        journal = Journal(tmp_path)
        assert (journal.next, file.read_bytes()) == (2, whole)
        assert journal.notices == (
            [f"{torn} bytes at the end of {file.name}, a record that was not written whole, were cut off"] * (torn > 0)
        )
        journal.close()
    journal = Journal(tmp_path)
    journal.append(b"again")
    assert payloads(tmp_path) == [*expected, (2, b"again")]


def test_an_acknowledged_last_record_cut_anywhere_comes_from_its_copy(tmp_path):
    expected = written(tmp_path, 3)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    for size in range(len(whole) - 40, len(whole)):
        file.write_bytes(whole[:size])
        assert payloads(tmp_path) == expected
        journal = Journal(tmp_path)
        assert (journal.next, file.read_bytes()) == (3, whole)
        assert (
            "record 2 is missing or damaged at the end of the journal; it was restored from journal-end-0"
            in (journal.notices[0])
        )
        journal.close()
    assert (tmp_path / f"{file.stem}.torn-2").read_bytes() == whole[-40:-39]  # no byte was thrown away
    journal = Journal(tmp_path)
    assert journal.append(b"on") == 3
    assert payloads(tmp_path) == [*expected, (3, b"on")]


@pytest.mark.parametrize("size", range(HEADER_SIZE + 1))
def test_a_segment_cut_in_its_header_is_begun_again(tmp_path, size):
    expected = written(tmp_path, 3, segment_bytes=100)
    file = tmp_path / "journal-00000000000000000002.log"
    header = file.read_bytes()[:size]
    file.write_bytes(header)
    assert payloads(tmp_path) == expected  # record 2 lies in its copy
    Journal(tmp_path).close()
    assert file.stat().st_size == HEADER_SIZE + 40
    (tmp_path / "journal-end-0").unlink()  # now as if it had not been acknowledged
    file.write_bytes(header)
    assert payloads(tmp_path) == expected[:2]
    journal = Journal(tmp_path, 0, 100)
    assert journal.next == 2
    journal.append(b"again")
    assert payloads(tmp_path) == [*expected[:2], (2, b"again")]


def test_zeros_behind_the_end_are_cut_off(tmp_path):
    # What a file system may show after a loss of power: the size is there and the bytes are not.
    expected = written(tmp_path, 3)
    (file,) = tmp_path.glob("*.log")
    with file.open("ab") as end:
        end.write(bytes(4096))
    assert payloads(tmp_path) == expected
    assert len(Journal(tmp_path).notices) == 1
    assert file.stat().st_size == HEADER_SIZE + 3 * 40


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_last_record_with_wrong_bytes_comes_from_its_copy_and_is_kept_beside(tmp_path):
    expected = written(tmp_path, 3)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    for n, place in enumerate((-10, -20)):
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        journal = Journal(tmp_path)
        assert file.read_bytes() == whole
        journal.close()
        kept = tmp_path / f"{file.stem}.torn-2{['', '-2'][n]}"
        assert f"kept in {kept.name}" in journal.notices[1]
        assert kept.read_bytes() == data[-40:]
    assert payloads(tmp_path) == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:120], r"records 2 to 3 .* are missing: journal-0+\.log ends at byte 120, before record 2"),
        (lambda data: data[:160], r"record 3 .* missing: journal-0+\.log ends at byte 160, before record 3"),
        (
            lambda data: data[:161],
            r"record 3 .* missing: journal-0+\.log is damaged at byte 160, where record 3 begins",
        ),
        (lambda data: data[:130] + bytes(110), r"records 2 to 3 .* damaged at byte 120, where record 2 begins"),
        (lambda data: data[:159] + b"x" * 81, r"record 3 .* damaged at byte 160, where record 3 begins"),
        (lambda data: data[:40], r"records 0 to 3 .* ends at byte 40, before record 0"),
        (lambda data: data[:39], r"records 0 to 3 .* damaged at byte 0, where record 0 begins"),
        (lambda data: b"", r"records 0 to 3 .* ends at byte 0, before record 0"),
        (lambda data: bytes(240), r"records 0 to 3 .* damaged at byte 0"),
        (lambda data: None, r"records 0 to 3 .* missing: there is no segment that could hold what is missing"),
        (lambda data: data[:50] + b"x" * 40 + data[90:], r"damaged at byte 40, in record 0: whole records follow from"),
    ],
)
def test_several_lost_records_are_an_error_that_names_them_and_nothing_is_changed(tmp_path, damage, message):
    written(tmp_path, 5)  # 0 to 4, at bytes 40, 80, ..., 200; the last one is in its copy
    (file,) = tmp_path.glob("*.log")
    damaged = damage(file.read_bytes())
    if damaged is None:
        file.unlink()
    else:
        file.write_bytes(damaged)
    before = contents(tmp_path)
    for reading in (payloads, Journal):
        with pytest.raises(JournalError, match=message):
            reading(tmp_path)
    assert contents(tmp_path) == before
    if "whole records" not in message:  # a checkpoint that knows all of them needs none of them
        assert payloads(tmp_path, 5) == []
        journal = Journal(tmp_path, 5)
        assert journal.append(b"on") == 5
        assert payloads(tmp_path, 5) == [(5, b"on")]


def test_a_missing_last_segment_is_an_error_unless_its_one_record_is_in_the_copy(tmp_path):
    expected = written(tmp_path, 6, segment_bytes=100)  # 0 1 | 2 3 | 4 5
    (tmp_path / "journal-00000000000000000004.log").unlink()
    with pytest.raises(JournalError, match=r"record 4 .* missing: journal-0+2\.log ends at byte 120, before record 4"):
        payloads(tmp_path)
    with pytest.raises(JournalError, match=r"record 4 of the journal in .* had been on disk, and is missing"):
        Journal(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    assert written(other, 5, segment_bytes=100) == expected[:5]
    (other / "journal-00000000000000000004.log").unlink()
    assert payloads(other) == expected[:5]
    journal = Journal(other, 0, 100)
    assert journal.notices == [
        "record 4 is missing or damaged at the end of the journal; it was restored from journal-end-0"
    ]
    assert journal.append(expected[5][1]) == 5
    assert payloads(other) == expected


def test_a_large_record_is_not_written_twice_and_yet_not_lost_silently(tmp_path):
    journal = Journal(tmp_path)
    for payload in (b"small", bytes(2**20), b"small"):
        journal.append(payload)
    journal.close()
    assert (tmp_path / "journal-end-1").stat().st_size == HEADER_SIZE
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    file.write_bytes(whole[: 40 + 32 + 24 + 2**20])
    assert [number for number, _ in payloads(tmp_path)] == [0, 1, 2]  # the last one is small
    file.write_bytes(whole[: 40 + 32 + 24 + 2**20 - 1])
    with pytest.raises(JournalError, match=r"record 1 .* is missing: .* is damaged at byte 72, where record 1 begins"):
        payloads(tmp_path)
    (tmp_path / "journal-end-0").unlink()
    for reading in (payloads, Journal):
        with pytest.raises(JournalError, match=r"record 1 .* is missing: .* is damaged at byte 72, where record 1 beg"):
            reading(tmp_path)
    file.write_bytes(whole[:72] + whole[72 : 72 + 24 + 2**20])
    journal = Journal(tmp_path)
    assert (journal.next, journal.notices) == (2, [])
    assert journal.append(b"on") == 2


def test_what_is_missing_can_be_given_up_by_moving_the_copies_away(tmp_path):
    expected = written(tmp_path, 5)
    (file,) = tmp_path.glob("*.log")
    file.write_bytes(file.read_bytes()[:130])
    with pytest.raises(JournalError, match="to continue without, move journal-end-0 and journal-end-1 away"):
        Journal(tmp_path)
    for name in COPIES:
        (tmp_path / name).unlink()
    journal = Journal(tmp_path, marked=True)
    assert journal.next == 2
    assert "whether there were records after record 1 cannot be told" in journal.notices[0]
    assert "kept in journal-00000000000000000000.torn-2" in journal.notices[1]
    journal.append(b"on")
    assert payloads(tmp_path) == [*expected[:2], (2, b"on")]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_without_copies_the_end_is_said_to_be_unknown(tmp_path, which):
    expected = written(tmp_path, 5)
    for i in range(2):
        if i == which:
            (tmp_path / COPIES[i]).write_bytes(bytes(100))
        if which == 2:
            (tmp_path / COPIES[i]).unlink()
    assert payloads(tmp_path) == expected
    journal = Journal(tmp_path)
    # Record 4 was copied to journal-end-0. Without it, it looks as if that copy was just being written.
    assert len(journal.notices) == (which == 2)
    journal.append(b"on")
    journal.close()
    assert Journal(tmp_path).notices == []  # the copies are there again


def test_a_head_that_is_whole_proves_what_follows_it_even_without_copies(tmp_path):
    # Records 2 to 4 lose their payloads. The head of record 2 says where it ended, and the file goes on behind that.
    written(tmp_path, 5)
    (file,) = tmp_path.glob("*.log")
    file.write_bytes(file.read_bytes()[: 120 + RECORD.size] + bytes(96))
    for name in COPIES:
        (tmp_path / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(JournalError, match="damaged at byte 120, in record 2: more follows than belongs to it"):
        Journal(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_damaged_byte_of_a_header_is_an_error(tmp_path, n):
    written(tmp_path, n)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    for place in range(HEADER_SIZE):
        data = bytearray(whole)
        data[place] ^= 1 << random.Random(place).randrange(8)
        file.write_bytes(data)
        for reading in (payloads, Journal):
            with pytest.raises(JournalError, match=rf"{file} is damaged at byte 0: expected the header"):
                reading(tmp_path)
        assert file.read_bytes() == data


def test_any_damaged_byte_before_the_last_record_is_an_error_that_says_where(tmp_path):
    written(tmp_path, 3)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    for place in range(HEADER_SIZE, len(whole) - 40):
        data = bytearray(whole)
        data[place] ^= 0x10
        file.write_bytes(data)
        number, within = divmod(place - HEADER_SIZE, 40)
        if within >= RECORD.size + 10:
            continue  # padding says nothing
        for reading in (payloads, Journal):
            with pytest.raises(
                JournalError, match=rf"{file} is damaged at byte {40 + 40 * number}, in record {number}"
            ):
                reading(tmp_path)
        assert file.read_bytes() == data


def test_damage_in_a_segment_before_the_last_is_an_error(tmp_path):
    written(tmp_path, 4, segment_bytes=100)
    first = tmp_path / "journal-00000000000000000000.log"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(JournalError, match=r"damaged at byte 80, in record 1: a later segment follows"):
        payloads(tmp_path)
    first.write_bytes(whole[:-40])
    with pytest.raises(JournalError, match="records 1 to 1 are missing between the segments"):
        payloads(tmp_path)
    first.write_bytes(b"x" + whole[1:])
    with pytest.raises(JournalError, match="damaged at byte 0: expected the header"):
        payloads(tmp_path)
    first.unlink()
    with pytest.raises(JournalError, match="records 0 to 1 are missing"):
        payloads(tmp_path)
    assert len(payloads(tmp_path, 2)) == 2


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_a_journal_carries_the_identity_of_its_service_and_another_one_is_refused(tmp_path):
    mine, others = b"m" * 16, b"o" * 16
    for name, identity in (("mine", mine), ("others", others)):
        (tmp_path / name).mkdir()
        journal = Journal(tmp_path / name, identity=identity)
        journal.append(b"a")
        journal.append(b"b")
        journal.close()
        assert owner(tmp_path / name) == identity
    assert list(read(tmp_path / "mine", 0, mine)) == [(0, b"a"), (1, b"b")]
    for name in ("journal-00000000000000000000.log", "journal-end-0", "journal-end-1"):
        own = (tmp_path / "mine" / name).read_bytes()
        (tmp_path / "mine" / name).write_bytes((tmp_path / "others" / name).read_bytes())
        for reading in (
            lambda: list(read(tmp_path / "mine", 0, mine)),
            lambda: Journal(tmp_path / "mine", 0, 99, mine),
        ):
            with pytest.raises(
                JournalError, match=rf"{name} is {others.hex()}; expected {mine.hex()}, that of the che"
            ):
                reading()
        (tmp_path / "mine" / name).write_bytes(own)


# --- version 0.1 ------------------------------------------------------------------------------------------------------


def in_old_format(folder):
    """Make a journal one of version 0.1: shorter headers without an identity, no copies."""
    for path in folder.glob("journal-*.log"):
        start = b"VAPXJRN1" + int(path.stem[8:]).to_bytes(8, "little")
        path.write_bytes(start + zlib.crc32(start).to_bytes(4, "little") + bytes(4) + path.read_bytes()[HEADER_SIZE:])
    for name in COPIES:
        (folder / name).unlink(missing_ok=True)


def test_a_journal_of_version_0_1_is_read_and_gone_on_with_in_a_new_segment(tmp_path):
    expected = written(tmp_path, 3, segment_bytes=100)
    in_old_format(tmp_path)
    assert payloads(tmp_path) == expected
    journal = Journal(tmp_path, identity=b"m" * 16)
    assert (journal.next, journal.notices) == (3, [])
    assert journal.append(b"on") == 3
    assert names_in(tmp_path)[-1] == "journal-00000000000000000003.log"
    assert list(read(tmp_path, 0, b"m" * 16)) == [*expected, (3, b"on")]
    with pytest.raises(
        JournalError, match=r"journal-0+\.log has no identity; expected that of the checkpoint beside it"
    ):
        list(read(tmp_path, 0, b"m" * 16, old_format=False))
    assert list(read(tmp_path, 3, b"m" * 16, old_format=False)) == [(3, b"on")]


def test_a_torn_end_of_version_0_1_is_cut_off_and_kept(tmp_path):
    expected = written(tmp_path, 3)
    in_old_format(tmp_path)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    journal = Journal(tmp_path)
    assert journal.next == 2
    (notice,) = journal.notices
    assert "33 bytes at the end of" in notice
    assert (tmp_path / f"{file.stem}.torn-2").read_bytes() == whole[-40:-7]
    journal.append(b"on")
    assert payloads(tmp_path) == [*expected[:2], (2, b"on")]
    # A segment with a header and nothing else gives way to one of the same name.
    other = tmp_path / "other"
    other.mkdir()
    (other / "journal-00000000000000000000.log").write_bytes(whole[:24])
    assert Journal(other).append(b"first") == 0
    assert payloads(other) == [(0, b"first")]


@pytest.mark.parametrize("n", [1, 3])
def test_each_damaged_byte_of_a_header_of_version_0_1_is_an_error(tmp_path, n):
    written(tmp_path, n)
    in_old_format(tmp_path)
    (file,) = tmp_path.glob("*.log")
    whole = file.read_bytes()
    for place in range(24):
        data = bytearray(whole)
        data[place] ^= 4
        file.write_bytes(data)
        with pytest.raises(JournalError, match="is damaged at byte 0: expected the header"):
            payloads(tmp_path)


def test_a_file_of_another_name_is_an_error(tmp_path):
    (tmp_path / "journal-copy.log").write_bytes(b"")
    with pytest.raises(JournalError, match=r"is not that of a segment; expected journal-NUMBER\.log"):
        Journal(tmp_path)


# --- no room ----------------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from pathlib import Path
from valueapprox.service.journal import Journal
from valueapprox.service.segments import read
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
journal = Journal(folder, 0, int(sys.argv[2]))
failed, expected = 0, []
for i in range(40):
    # room for a part of the next record only, then for all of it
    room(journal.n_bytes + i if i % 2 else 2**20)
    payload = bytes([i]) * (i + 1)
    try:
        number = journal.append(payload)
        expected.append((number, payload))
    except OSError:
        failed += 1
room(2**20)
journal.append(b"last")
expected.append((journal.next - 1, b"last"))
assert [tuple(record) for record in read(folder)] == expected, expected
assert [number for number, _ in expected] == list(range(len(expected)))
again = Journal(folder, 0, 2**20)
assert (again.next, again.notices) == (len(expected), [])
print(failed, len(expected))
"""


@pytest.mark.parametrize("segment_bytes", [2**20, 1])
def test_a_write_that_finds_no_room_leaves_the_journal_as_it_was(tmp_path, segment_bytes):
    # The kernel refuses to let a file grow beyond RLIMIT_FSIZE, after writing what fits: as on a full disk.
    # A segment for each record tries the same with the header.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(segment_bytes)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed, kept = map(int, done.stdout.split())
    if segment_bytes == 1:
        assert kept > 20
    else:
        assert (failed, kept) == (20, 21)


def test_an_fsync_that_fails_is_no_acknowledgement(tmp_path, monkeypatch):
    # Injected, since no disk fails on demand: the record is in the file, and is taken away again.
    expected = written(tmp_path, 2)
    journal = Journal(tmp_path)

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            journal.append(b"lost")
        assert payloads(tmp_path) == expected
        patch.setattr(os, "ftruncate", fail)  # not even that works
        with pytest.raises(OSError, match="Input/output error"):
            journal.append(b"lost too")
        with pytest.raises(OSError, match="Input/output error"):
            journal.append(b"and this")
    assert journal.append(b"kept") == 2
    assert payloads(tmp_path) == [*expected, (2, b"kept")]


@pytest.mark.skipif(os.getuid() != 0, reason="a small file system is mounted")
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        journal = Journal(disk)
        journal.append(b"first")
        (disk / "other").write_bytes(bytes(64 * 1024))
        with pytest.raises(OSError, match="No space left"):
            journal.append(bytes(100_000))
        assert payloads(disk) == [(0, b"first")]
        (disk / "other").unlink()
        assert journal.append(bytes(100_000)) == 1
        assert payloads(disk) == [(0, b"first"), (1, bytes(100_000))]
        journal.close()
    finally:
        subprocess.run(["umount", disk], check=True)
