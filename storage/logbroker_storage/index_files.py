"""The indexes of a segment as files, held to their checksums (``index_checksums``): read, and summed.

The sums are written when a segment is sealed, closed, rewritten or recovered, without a sync: a torn file fails
its own checksum, and an old one vouches for what the indexes were grown from.
"""

from __future__ import annotations

import logging

from .files import Files, put_file
from .index_checksums import Checksum, IndexChecksums, encode, parse
from .segment_files import (
    ABORTED_INDEX_SUFFIX,
    CHECKSUMS_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    TIME_INDEX_SUFFIX,
    segment_name,
)

logger = logging.getLogger("logbroker.storage")

_INDEXES = (OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ABORTED_INDEX_SUFFIX)


def read_index_file(
    files: Files, directory: str, base_offset: int, suffix: str, *, is_sealed: bool
) -> bytes | None:
    """The content of an index; None when it fails its checksum, b"" when it is missing and may be.

    With *is_sealed* its segment is not the active one: nothing may have been added since it was summed.
    """
    stem = f"{directory}/{segment_name(base_offset)}"
    failed = None
    while True:
        content = _content(files, stem + suffix)
        checksums = _read_checksums(files, stem)
        checksum = None if checksums is None else checksums[_INDEXES.index(suffix)]
        if checksum is None or checksum.vouches_for(content, may_have_grown=not is_sealed):
            return content
        if failed == (content, checksum):
            break
        failed = (content, checksum)  # one of the two may have been replaced between our looks: look again
    logger.warning("%s%s fails its checksum: what it says is looked up in the log", stem, suffix)
    return None


def write_checksums(files: Files, directory: str, base_offset: int) -> None:
    """Vouch for the indexes as they are now. Nobody else may be writing to them."""
    stem = f"{directory}/{segment_name(base_offset)}"
    content = encode(IndexChecksums(*(Checksum.of(_content(files, stem + suffix)) for suffix in _INDEXES)))
    path = stem + CHECKSUMS_SUFFIX
    if _content(files, path) != content:
        put_file(files, path, content)


def _read_checksums(files: Files, stem: str) -> IndexChecksums | None:
    content = _content(files, stem + CHECKSUMS_SUFFIX)
    if not content:
        return None
    try:
        return parse(content)
    except ValueError as error:
        logger.warning("%s%s is not sound, passed over: %s", stem, CHECKSUMS_SUFFIX, error)
        return None


def _content(files: Files, path: str) -> bytes:
    try:
        return files.read_file(path)
    except FileNotFoundError:
        return b""
