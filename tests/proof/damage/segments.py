"""Every bit of a segment, one at a time: the batch that holds it is missed, as an error says, and no other is.

A flip touches one batch, and every reader goes from batch to batch, so for each bit it is enough to look at the
damaged batch and its two neighbours:

    who                  for each bit of the segment
    a consumer's reader  raises the error with exactly the batch's offsets; from there on, reads the next batch
    recovery's scan      stops at the batch
    the inspector        reports the batch, and finds both neighbours
    a look-up            (bits of headers, which look-ups hop by) each offset around leads to its batch or the error

That the others then are what they were is tried on whole copies of the directory, for a share of the bits:
opened with the view and without, read in both isolations, searched by time, appended to, verified, repaired.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from logbroker_storage.data_directory import DataDirectory
from logbroker_storage.errors import CorruptionError
from logbroker_storage.files import OsFiles
from logbroker_storage.log_reader import LogReader
from logbroker_storage.partition_log import PartitionLog
from logbroker_storage.record_batch import HEADER_BYTES, StoredBatch, decode_records
from logbroker_storage.segment import ScanStop, scan
from logbroker_tools.walk import Damaged, walk

from .store import TOPIC, Batch, Store

READ_BYTES = 1 << 16


def every_bit(store: Store, rng: random.Random, *, thorough: bool) -> int:
    """Flip each bit of the first segment in turn, while a process has it open; how many.

    The inspector looks at one bit of each byte, and one offset is looked up for each bit of a header; *thorough*:
    all of them.
    """
    (segment, _) = store.segments
    batches = [batch for batch in store.batches if batch.segment == segment]
    behind_all = next(batch for batch in store.batches if batch.segment != segment)
    directory = DataDirectory.open(str(store.data))
    try:
        log = directory.log(TOPIC, 0)
        with mapped(segment) as content:
            for number, batch in enumerate(batches):
                before = batches[number - 1] if number else None
                behind = batches[number + 1] if number + 1 < len(batches) else behind_all
                _Neighbourhood(store, log, content, before, batch, behind).flip_all(rng, thorough=thorough)
    finally:
        directory.close()
    assert segment.read_bytes() == store.sound_files[str(segment.relative_to(store.data))]
    return segment.stat().st_size * 8


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        yield content


class _Neighbourhood:
    """One batch of the segment, with those before and behind it."""

    def __init__(
        self,
        store: Store,
        log: PartitionLog,
        content: mmap.mmap,
        before: Batch | None,
        batch: Batch,
        behind: Batch,
    ) -> None:
        self.log = log
        self.content = content
        self.before, self.batch, self.behind = before, batch, behind
        self.files = OsFiles()
        self.around = [batch.offsets.start, batch.offsets.stop - 1, behind.offsets.start]
        if before is not None:
            self.around.append(before.offsets.stop - 1)
        first = before or batch
        end = behind.end_position if behind.segment == batch.segment else batch.end_position
        self.extract = store.path / "extract.log"
        self.extract.write_bytes(content[first.position : end])
        self.extract_start = first.position
        self.extract_base = first.header.base_offset

    def flip_all(self, rng: random.Random, *, thorough: bool) -> None:
        batch, content = self.batch, self.content
        start = batch.position
        reader = self._reader_at_batch()
        fd = self.files.open(str(batch.segment), readonly=True)
        extract_fd = self.files.open(str(self.extract), readonly=True)
        try:
            with mapped(self.extract) as extract:
                for position in range(start, batch.end_position):
                    is_header = position < start + HEADER_BYTES
                    inspected = rng.randrange(8)
                    for bit in range(8):
                        mask = 1 << bit
                        content[position] ^= mask
                        where = f"bit {position * 8 + bit} of {batch.segment.name}"
                        self._read(reader, where)
                        self._scan(fd, where)
                        if is_header:
                            self._look_up(self.around if thorough else [rng.choice(self.around)], where)
                        content[position] ^= mask
                        if thorough or bit == inspected:
                            extract[position - self.extract_start] ^= mask
                            self._inspect(extract_fd, len(extract), where)
                            extract[position - self.extract_start] ^= mask
        finally:
            reader.close()
            self.files.close(fd)
            self.files.close(extract_fd)

    def _reader_at_batch(self) -> LogReader:
        """A reader that has read what lies before the batch."""
        if self.before is None:
            return self.log.reader(self.batch.header.base_offset)
        reader = self.log.reader(self.before.header.base_offset)
        (read,) = reader.read(self.before.header.size_bytes)
        assert read.header == self.before.header
        return reader

    def _read(self, reader: LogReader, where: str) -> None:
        offsets = self.batch.offsets
        try:
            read = reader.read(READ_BYTES)
        except CorruptionError as error:
            found = (error.start_offset, error.end_offset, error.position)
        else:
            raise AssertionError(f"{where}: not noticed by a reader: {read[0].header if read else 'the end'}")
        assert found == (offsets.start, offsets.stop, self.batch.position), f"{where}: {found}"

    def _scan(self, fd: int, where: str) -> None:
        batch = self.batch
        item = next(
            scan(
                self.files,
                fd,
                start_position=batch.position,
                end_position=len(self.content),
                expected_offset=batch.header.base_offset,
            )
        )
        assert isinstance(item, ScanStop), f"{where}: not noticed by recovery"
        assert item.position == batch.position, where

    def _look_up(self, offsets: list[int], where: str) -> None:
        """By the index and the headers, as a consumer that seeks."""
        for offset in offsets:
            look_up(self.log, offset, self.batch, self.before, self.behind, where)

    def _inspect(self, fd: int, size: int, where: str) -> None:
        expected = [self.before.header.base_offset] if self.before is not None else []
        found: list[int] = []
        damaged: list[Damaged] = []
        is_last = self.behind.segment != self.batch.segment
        next_base = self.behind.header.base_offset if is_last else self.behind.header.next_offset
        for item in walk(
            self.files, fd, end_position=size, base_offset=self.extract_base, ours=True, next_base=next_base
        ):
            if isinstance(item, Damaged):
                damaged.append(item)
            else:
                found.append(item.header.base_offset)
        if not is_last:
            expected.append(self.behind.header.base_offset)
        assert found == expected, f"{where}: the inspector finds {found}, not {expected}"
        places = [(d.position + self.extract_start, d.start_offset, d.end_offset) for d in damaged]
        offsets = self.batch.offsets
        assert places == [(self.batch.position, offsets.start, offsets.stop)], f"{where}: {damaged}"


def look_up(
    log: PartitionLog, offset: int, damaged: Batch, before: Batch | None, behind: Batch, where: str
) -> None:
    """Seek to *offset* and read one batch: it is the one that holds it, as it was, or the error of the damage."""
    reader = log.reader(offset)
    told: CorruptionError | None = None
    read: list[StoredBatch] = []
    try:
        read = reader.read(1)
    except CorruptionError as error:
        told = error
    finally:
        reader.close()
    if told is not None:
        assert offset in damaged.offsets, f"{where}: offset {offset}: {told}"
        assert (told.start_offset, told.end_offset) == (damaged.offsets.start, damaged.offsets.stop), where
        return
    expected = before if before is not None and offset in before.offsets else behind
    assert read, f"{where}: nothing is found at offset {offset}"
    assert offset in expected.offsets, f"{where}: offset {offset} gives {read[0].header}"
    assert read[0].header == expected.header, f"{where}: offset {offset} gives {read[0].header}"
    assert tuple(decode_records(read[0])) == expected.records, f"{where}: offset {offset}"
