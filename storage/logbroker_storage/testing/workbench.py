"""A data directory with one topic, and the words that tests of the storage engine are made of.

    bench = Workbench(path, segment_bytes=1000)
    bench.put(b"a", b"b")
    bench.crash()                              as kill -9: nothing is closed, nothing is written any more
    assert bench.reopen().values() == [b"a", b"b"]

Each ``put`` is one batch, and durable unless it says otherwise. Settings are topic configuration keys with
underscores for dots.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence

from .. import open_directories
from ..clock import SYSTEM_CLOCK, Clock
from ..data_directory import DataDirectory
from ..files import Files, OsFiles
from ..log_config import LogConfig
from ..partition_log import AppendResult, PartitionLog
from ..record_batch import Record, decode_records, encode_values
from ..recovery import reopen_failed
from ..segment import locate
from ..segment_files import LOG_SUFFIX
from .faulty_files import FaultyFiles
from .log_builder import without_room
from .manual_clock import START_MS

TOPIC = "t"


def crash(directory: DataDirectory) -> None:
    """Drop *directory* as the death of its process would: no sync, no clean-up, every lock free at once."""
    files = directory.files
    if isinstance(files, FaultyFiles):
        files.heal()  # so that the descriptors can be closed, as the kernel does it
    directory.maintenance.close()
    open_directories.forget(directory)
    view = directory.view
    directory.abandon()
    view.close()


class Workbench:
    """One directory with the topic ``t``; see the module."""

    def __init__(
        self,
        path: str,
        *,
        files: Files | None = None,
        clock: Clock = SYSTEM_CLOCK,
        partitions: int = 1,
        **settings: object,
    ) -> None:
        self.path = path
        self.clock = clock
        self.directory = DataDirectory.open(path, files=files, clock=clock)
        if TOPIC not in self.directory.topics():
            config = {key.replace("_", "."): str(value) for key, value in settings.items()}
            self.directory.create_topic(TOPIC, partitions, LogConfig.parse(config))

    @property
    def log(self) -> PartitionLog:
        return self.partition(0)

    def partition(self, number: int) -> PartitionLog:
        return self.directory.log(TOPIC, number)

    @property
    def folder(self) -> str:
        """Where the segments of partition 0 lie."""
        return self.directory.layout.partition(TOPIC, 0)

    # Writing ------------------------------------------------------------------------------------------

    def batch(
        self,
        *values: bytes | None,
        timestamp_ms: int | None = None,
        producer_id: int = -1,
        epoch: int = -1,
        sequence: int = -1,
    ) -> bytearray:
        """The values as one batch; a producer's epoch is 0 unless given."""
        if producer_id >= 0 and epoch < 0:
            epoch = 0
        return encode_values(
            values,
            [(0, START_MS if timestamp_ms is None else timestamp_ms)],
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
        )

    def put(
        self,
        *values: bytes | None,
        partition: int = 0,
        sync: bool = True,
        gaps: bool = False,
        timestamp_ms: int | None = None,
        producer_id: int = -1,
        epoch: int = -1,
        sequence: int = -1,
    ) -> AppendResult:
        """Append the values as one batch, and sync it."""
        log = self.partition(partition)
        batch = self.batch(
            *values, timestamp_ms=timestamp_ms, producer_id=producer_id, epoch=epoch, sequence=sequence
        )
        result = log.append(batch, allow_sequence_gaps=gaps)
        if sync:
            log.sync(result.last_offset + 1)
        return result

    def lose(self, offset: int) -> None:
        """The disk refuses a sync and holds nothing from the batch of *offset* on; then the log is verified."""
        log = self.log
        with log.append_lock:
            log.syncing.refused(OSError(errno.EIO, "lost"))
        holding = [base for base in self.segments() if base <= offset][-1]
        segment = log.segment(holding)
        try:
            size = segment.log_bytes()
            lost = locate(self.directory.files, segment.descriptor(), b"", holding, offset, size)
            segment.cut_log(lost.position)
        finally:
            segment.close()
        reopen_failed(log)

    # Reading ------------------------------------------------------------------------------------------

    def records(self, start_offset: int | None = None, *, partition: int = 0) -> list[Record]:
        """Every visible record from *start_offset* (the log start offset) on."""
        log = self.partition(partition)
        start = log.offsets().log_start_offset if start_offset is None else start_offset
        reader = log.reader(start)
        found: list[Record] = []
        try:
            while batches := reader.read():
                for batch in batches:
                    found += decode_records(batch, TOPIC, partition)
        finally:
            reader.close()
        return [record for record in found if record.offset >= start]

    def values(self, start_offset: int | None = None, *, partition: int = 0) -> list[bytes | None]:
        return [record.value for record in self.records(start_offset, partition=partition)]

    def segments(self) -> list[int]:
        """The base offsets of partition 0's segments."""
        return self.log.segments(self.log.state().end)

    def side_files(self) -> list[str]:
        """The names of the files that keep what recovery cut."""
        return [name for name in os.listdir(self.folder) if ".cut-" in name or ".unpublished-" in name]

    # Ending and beginning anew ------------------------------------------------------------------------

    def close(self) -> None:
        """Close the directory as a program does that ends."""
        if not self.directory.closed:
            self.directory.close()

    def crash(self) -> None:
        """Die at this instruction."""
        crash(self.directory)

    def open(self, *, files: Files | None = None) -> Workbench:
        """Open the directory again after ``close`` or ``crash``."""
        self.directory = DataDirectory.open(self.path, files=files or OsFiles(), clock=self.clock)
        return self

    def reopen(self, *, without_view: bool = False, files: Files | None = None) -> Workbench:
        """Close (unless that is done) and open again, perhaps after the view was deleted."""
        self.close()
        if without_view:
            shutil.rmtree(self.directory.layout.view)
        return self.open(files=files)

    def contents(self, names: Sequence[str] = (".log", ".index", ".timeindex")) -> dict[str, bytes]:
        """The files of partition 0's segments by name, the log without its room."""
        found: dict[str, bytes] = {}
        for name in sorted(os.listdir(self.folder)):
            if name.endswith(tuple(names)):
                with open(f"{self.folder}/{name}", "rb") as file:
                    content = file.read()
                found[name] = without_room(content) if name.endswith(LOG_SUFFIX) else content
        return found
