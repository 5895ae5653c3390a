"""Putting a rewritten segment in the place of one or several neighbours, so that a crash leaves old or new.

    step                                                       a crash before the next step leaves
    1. write ``<base>.{log,index,…}.cleaned``                  rubbish, removed
    2. write ``<base>.replaces``: the other segments' bases    the same
    3. rename the .log over the old one                        the new log; step 4 is done
    4. rename the indexes, remove the others and the list      (done)

A list without its ``.log.cleaned`` says that step 3 was done, so rubbish is removed list first. Changes of names
may reach the disk in any order: the directory is synced after 1, 2 and 3, before the list goes, and behind it where
rubbish follows.

After step 3 both the new segment and the others it replaces hold the same offsets. That is sound to read:
the others' records are only superseded, not wrong.

Readers that have an old file open read it to its end; the version in LogEnd makes them look anew. Before a pass
begins, LogEnd counts it, for those who list the folder meanwhile (``segment_list``): no pass renames over a name twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .errors import WriteFailedError
from .files import Buffer, Files, open_fresh, write_synced
from .index_checksums import Checksum, IndexChecksums, encode
from .local_log import LocalLog
from .record_batch import read_header
from .segment import IndexBuilder, sound_headers
from .segment_files import (
    ABORTED_INDEX_SUFFIX,
    CHECKSUMS_SUFFIX,
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    SEGMENT_SUFFIXES,
    TIME_INDEX_SUFFIX,
    SegmentFiles,
    list_segments,
    parse_segment_name,
    segment_name,
)

CLEANED_SUFFIX = ".cleaned"
REPLACES_SUFFIX = ".replaces"
WRITE_BYTES = 1 << 20


class Rewritten(NamedTuple):
    """A complete, synced replacement that waits beside the log."""

    base_offset: int
    size_bytes: int


def begin_pass(log: LocalLog) -> None:
    """Before the first of some replacements, each of other segments."""
    with log.append_lock:
        log.publish_end(log.state().end.with_cleaning())


def write_replacement(
    log: LocalLog, base_offset: int, batches: Iterable[Buffer], *, aborted_index: bytes = b""
) -> Rewritten:
    """Step 1: the batches as a segment of its own, under names that nobody reads.

    *aborted_index* holds the entries of all segments that it replaces: they cannot be told from the batches.
    """
    segment = log.segment(base_offset)
    indexes = IndexBuilder(base_offset, log.config.index_interval_bytes)
    fd = open_fresh(log.files, segment.path(LOG_SUFFIX) + CLEANED_SUFFIX)
    position = written = 0
    pending: list[Buffer] = []
    try:
        for batch in batches:
            indexes.add(position, read_header(batch))
            pending.append(batch)
            position += len(batch)
            if position - written >= WRITE_BYTES:
                log.files.pwritev(fd, pending, written)
                pending.clear()
                written = position
        log.files.pwritev(fd, pending, written)
        log.files.fsync(fd)
    finally:
        log.files.close(fd)
    sealed = indexes.seal()
    write_synced(log.files, segment.path(OFFSET_INDEX_SUFFIX) + CLEANED_SUFFIX, sealed.offset_index)
    write_synced(log.files, segment.path(TIME_INDEX_SUFFIX) + CLEANED_SUFFIX, sealed.time_index)
    if aborted_index:
        write_synced(log.files, segment.path(ABORTED_INDEX_SUFFIX) + CLEANED_SUFFIX, aborted_index)
    sums = IndexChecksums(
        Checksum.of(sealed.offset_index), Checksum.of(sealed.time_index), Checksum.of(aborted_index)
    )
    write_synced(log.files, segment.path(CHECKSUMS_SUFFIX) + CLEANED_SUFFIX, encode(sums))
    log.files.fsync_directory(log.directory)
    return Rewritten(base_offset, position)


def discard_replacement(log: LocalLog, base_offset: int) -> None:
    """Remove what step 1 made."""
    segment = log.segment(base_offset)
    for suffix in SEGMENT_SUFFIXES:
        _remove(log.files, segment.path(suffix) + CLEANED_SUFFIX)


def replace_segments(log: LocalLog, bases: Sequence[int]) -> None:
    """Steps 2 to 4: what ``write_replacement`` made for the first of *bases* takes the place of them all.

    Raises:
        WriteFailedError: it is gone; the segments stay as they are.
    """
    segment = log.segment(bases[0])
    cleaned = segment.path(LOG_SUFFIX) + CLEANED_SUFFIX
    with log.append_lock:
        # A list without the new log would say that the old ones are to go.
        if not log.files.exists(cleaned):
            raise WriteFailedError(f"{cleaned} is gone, nobody knows why; the next cleaning makes it again")
        content = "".join(f"{base}\n" for base in bases[1:]).encode()
        log.files.replace_file(segment.path(REPLACES_SUFFIX), content)
        log.files.rename(cleaned, segment.path(LOG_SUFFIX))
        _finish(log.files, segment, bases[1:])
        end = log.state().end
        log.publish_end(end._replace(segments_version=end.segments_version + 1))


def finish_replacements(files: Files, directory: str) -> None:
    """Go on where a dead process stopped: finish step 4, or remove what it had not put in place."""
    names = files.listdir(directory)
    lists = {name: base for name in names if (base := parse_segment_name(name, REPLACES_SUFFIX)) is not None}
    for name, base in lists.items():
        if f"{segment_name(base)}{LOG_SUFFIX}{CLEANED_SUFFIX}" in names:
            files.unlink(f"{directory}/{name}")
        else:
            segment = SegmentFiles(files, directory, base)
            _finish(files, segment, _superseded(files, segment))
    if lists:
        files.fsync_directory(directory)
    for name in files.listdir(directory):
        if name.endswith(CLEANED_SUFFIX):
            files.unlink(f"{directory}/{name}")


def is_unfinished(names: Iterable[str]) -> bool:
    """Whether a folder with files of these *names* has something for ``finish_replacements`` to do."""
    return any(name.endswith((CLEANED_SUFFIX, REPLACES_SUFFIX)) for name in names)


def _superseded(files: Files, segment: SegmentFiles) -> list[int]:
    """The bases of the other segments whose offsets *segment*, the new one, holds.

    By what it holds, not by the list: a damaged one must not have another segment removed.
    """
    try:
        headers = sound_headers(
            files,
            segment.descriptor(),
            start_position=0,
            end_position=segment.log_bytes(),
            expected_offset=segment.base_offset,
        )
        end_offset = max((header.next_offset for _, header in headers), default=segment.base_offset)
    finally:
        segment.close()
    others = {base for suffix in SEGMENT_SUFFIXES for base in list_segments(files, segment.directory, suffix)}
    return sorted(base for base in others if segment.base_offset < base < end_offset)


def _finish(files: Files, segment: SegmentFiles, replaced_bases: Sequence[int]) -> None:
    """Step 4."""
    directory = segment.directory
    files.fsync_directory(directory)
    if files.exists(segment.path(CHECKSUMS_SUFFIX) + CLEANED_SUFFIX):
        # The old sums would have the new indexes taken for damaged; without any they are believed.
        _remove(files, segment.path(CHECKSUMS_SUFFIX))
    for suffix in (OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ABORTED_INDEX_SUFFIX, CHECKSUMS_SUFFIX):
        cleaned = segment.path(suffix) + CLEANED_SUFFIX
        if files.exists(cleaned):
            files.rename(cleaned, segment.path(suffix))
    for base in replaced_bases:
        replaced = SegmentFiles(files, directory, base)
        for suffix in SEGMENT_SUFFIXES:
            _remove(files, replaced.path(suffix))
    files.fsync_directory(directory)
    files.unlink(segment.path(REPLACES_SUFFIX))


def _remove(files: Files, path: str) -> None:
    if files.exists(path):
        files.unlink(path)
