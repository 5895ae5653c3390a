"""Any single flipped bit of a segment is reported, at the batch that holds it, and no other batch is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from logbroker_storage.record_batch import (
    HEADER_BYTES,
    Compression,
    ControlType,
    NewRecord,
    assign,
    encode_batch,
    encode_control_batch,
    encode_empty_batch,
    encode_values,
    read_header,
)
from logbroker_tools.findings import Finding, Severity
from logbroker_tools.layout import find
from logbroker_tools.verify import verify

NOW_MS = 1_700_000_000_000
FIRST_OFFSET = 40


def tiled(
    made: list[bytearray], *, base_offset: int = FIRST_OFFSET, epochs: list[int] | None = None
) -> list[bytes]:
    """The batches at consecutive offsets."""
    for number, batch in enumerate(made):
        assign(batch, base_offset, epochs[number] if epochs else 0)
        base_offset = read_header(batch).next_offset
    return [bytes(batch) for batch in made]


def every_kind() -> list[bytearray]:
    """One batch of each kind that a log may hold."""
    compressed = [
        encode_batch([NewRecord(b"z" * 40, b"k", (), NOW_MS + codec)] * 3, compression=codec)
        for codec in Compression
        if codec is not Compression.NONE
    ]
    return [
        encode_values([b"a", b"bb", None], [(0, NOW_MS)]),
        encode_batch([NewRecord(b"v", b"k", (("h", b"x"), ("n", None)), NOW_MS + 1), NewRecord(None, b"", (), NOW_MS)]),
        *compressed,
        encode_batch(
            [NewRecord(b"t", None, (), NOW_MS)],
            transactional=True,
            producer_id=7,
            producer_epoch=1,
            base_sequence=0,
        ),
        encode_control_batch(ControlType.ABORT, producer_id=7, producer_epoch=1, timestamp_ms=NOW_MS),
        encode_empty_batch(base_offset=0, last_offset=5, timestamp_ms=NOW_MS),
        encode_values([b"last"], [(0, NOW_MS + 9)]),
    ]  # fmt: skip


def segment_path(folder: Path, base_offset: int = FIRST_OFFSET) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{base_offset:020d}.log"


def errors(path: Path, *, kafka: bool = False) -> list[Finding]:
    return [f for f in verify(find(str(path), kafka=kafka)) if f.severity is Severity.ERROR]


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_in_a_segment_of_ours(tmp_path: Path) -> None:
    made = tiled(every_kind())
    content = b"".join(made)
    path = segment_path(tmp_path / "t-0")
    path.write_bytes(content)
    assert errors(path.parent) == []
    start = 0
    for batch in made:
        header = read_header(batch)
        is_last = start + len(batch) == len(content)
        for bit in range(start * 8, (start + len(batch)) * 8):
            path.write_bytes(flipped(content, bit))
            found = errors(path.parent)
            # One error, at the batch, which ends where the next one begins: all others are still seen.
            assert len(found) == 1, f"bit {bit}: {found}"
            (finding,) = found
            assert (finding.position, finding.start_offset) == (start, header.base_offset), (
                f"bit {bit}: {found}"
            )
            assert finding.end_offset == (None if is_last else header.next_offset), f"bit {bit}: {found}"
        start += len(batch)


def test_in_the_last_batch_of_a_segment_that_others_follow(tmp_path: Path) -> None:
    made = tiled(every_kind())
    (after,) = tiled([encode_values([b"x"], [(0, NOW_MS)])], base_offset=read_header(made[-1]).next_offset)
    path = segment_path(tmp_path / "t-0")
    segment_path(path.parent, read_header(after).base_offset).write_bytes(after)
    content = b"".join(made)
    start = len(content) - len(made[-1])
    for bit in range(start * 8, len(content) * 8):
        path.write_bytes(flipped(content, bit))
        (finding,) = errors(path.parent)
        assert (finding.path, finding.position) == (str(path), start), f"bit {bit}"
        assert finding.end_offset == read_header(after).base_offset, f"bit {bit}"


def test_in_the_headers_of_a_segment_of_kafkas_whose_epochs_grow(tmp_path: Path) -> None:
    kinds = [*every_kind()[:6], every_kind()[-1]]
    epochs = [3] * 4 + [5] * (len(kinds) - 4)
    made = tiled(kinds, epochs=epochs)
    del made[2]  # compaction took it away
    (after,) = tiled([encode_values([b"x"], [(0, NOW_MS)])], base_offset=read_header(made[-1]).next_offset)
    path = segment_path(tmp_path / "t-0")
    segment_path(path.parent, read_header(after).base_offset).write_bytes(after)
    content = b"".join(made)
    path.write_bytes(content)
    assert errors(path.parent, kafka=True) == []
    behind_gap = len(made[0]) + len(made[1])
    unseen: list[tuple[int, int]] = []
    start = 0
    for number, batch in enumerate(made):
        for bit in range(start * 8, (start + HEADER_BYTES) * 8):
            path.write_bytes(flipped(content, bit))
            found = errors(path.parent, kafka=True)
            places = {finding.position for finding in found}
            # Where a batch reaches back over one that lies behind a gap, either may be the one that was moved.
            is_ambiguous = number == 3 and bit // 8 - start < 8
            assert not found or start in places or (is_ambiguous and behind_gap in places), (
                f"bit {bit}: {found}"
            )
            if not found:
                unseen.append((number, bit // 8 - start))
        start += len(batch)
    # What Kafka's own rules allow: batches move within a gap, epochs grow anywhere (bytes 12 to 15).
    assert all(12 <= at < 16 or (at < 8 and number in (1, 2)) for number, at in unseen), unseen


@pytest.mark.parametrize("kafka", [False, True])
def test_a_batch_inside_a_records_value_is_not_taken_for_one_of_the_logs(tmp_path: Path, kafka: bool) -> None:
    copy = bytes(tiled([encode_values([b"inner"], [(0, NOW_MS)])], base_offset=FIRST_OFFSET + 1)[0])
    made = tiled(
        [
            encode_values([b"a"], [(0, NOW_MS)]),
            encode_values([copy], [(0, NOW_MS)]),
            encode_values([b"b"], [(0, NOW_MS)]),
        ]
    )
    content = bytearray(b"".join(made))
    content[len(made[0]) + 30] ^= 1  # in the header of the batch that holds the copy
    path = segment_path(tmp_path / "t-0")
    path.write_bytes(content)
    (finding,) = errors(path.parent, kafka=kafka)
    assert (finding.position, finding.end_offset) == (len(made[0]), FIRST_OFFSET + 2)
