r"""Kafka's small text files beside the segments: each an encode/parse pair of pure functions.

    file                              lines
    leader-epoch-checkpoint           0 \n count \n epoch start_offset \n …
    recovery-point-offset-checkpoint  0 \n count \n topic partition offset \n …
    log-start-offset-checkpoint       the same
                                      ours end with an entry __checksum 0 CRC-32C of the entries before it:
                                      Kafka passes over topics that are not there, and a changed digit is seen
    partition.metadata                version: 0 \n topic_id: base64url(uuid), 22 characters
    meta.properties                   key=value \n … ; lines from # on are comments

The count makes a cut file detectable. Every parser raises ``ValueError`` on anything else than what is
drawn here; a checkpoint is written by ``Files.replace_file``, so it is whole or its predecessor.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping

import msgspec

from .crc32c import crc32c

LEADER_EPOCH_CHECKPOINT = "leader-epoch-checkpoint"
RECOVERY_POINT_CHECKPOINT = "recovery-point-offset-checkpoint"
LOG_START_OFFSET_CHECKPOINT = "log-start-offset-checkpoint"
PARTITION_METADATA = "partition.metadata"
META_PROPERTIES = "meta.properties"

VERSION = 0
CHECKSUM_TOPIC = "__checksum"
TOPIC_ID_BYTES = 16


class EpochStart(msgspec.Struct, frozen=True, gc=False):
    """From *start_offset* on, batches carry *leader_epoch*."""

    leader_epoch: int
    start_offset: int


class PartitionOffset(msgspec.Struct, frozen=True, gc=False):
    """An offset that is checkpointed for one partition."""

    topic: str
    partition: int
    offset: int


def encode_leader_epochs(epochs: Iterable[EpochStart]) -> bytes:
    """The content of ``leader-epoch-checkpoint``; epochs ascend."""
    return _encode_checkpoint(f"{epoch.leader_epoch} {epoch.start_offset}" for epoch in epochs)


def parse_leader_epochs(data: bytes) -> list[EpochStart]:
    """The epochs of ``leader-epoch-checkpoint``; ``ValueError`` when it is not one."""
    return [EpochStart(int(epoch), int(start)) for epoch, start in _parse_checkpoint(data, fields=2)]


def encode_partition_offsets(offsets: Iterable[PartitionOffset]) -> bytes:
    """The content of ``recovery-point-offset-checkpoint`` or ``log-start-offset-checkpoint``."""
    rows = [f"{entry.topic} {entry.partition} {entry.offset}" for entry in offsets]
    return _encode_checkpoint([*rows, _checksum_row(rows)])


def parse_partition_offsets(data: bytes) -> list[PartitionOffset]:
    """The offsets of such a checkpoint; ``ValueError`` when it is not one, or fails its checksum."""
    rows = _parse_checkpoint(data, fields=3)
    if rows and rows[-1][0] == CHECKSUM_TOPIC and " ".join(rows.pop()) != _checksum_row(map(" ".join, rows)):
        raise ValueError("checkpoint: the checksum does not match")
    return [PartitionOffset(topic, int(partition), int(offset)) for topic, partition, offset in rows]


def encode_partition_metadata(topic_id: bytes) -> bytes:
    """The content of ``partition.metadata`` for a topic id of 16 bytes; without a newline, as Kafka's."""
    return f"version: {VERSION}\ntopic_id: {encode_topic_id(topic_id)}".encode()


def parse_partition_metadata(data: bytes) -> bytes:
    """The 16 bytes of the topic id in ``partition.metadata``; ``ValueError`` when there is none."""
    fields: dict[str, str] = {}
    for line in data.decode().splitlines():
        name, separator, value = line.partition(":")
        if not separator:
            raise ValueError(f"partition.metadata: no colon in {line!r}")
        fields[name.strip()] = value.strip()
    if fields.get("version") != str(VERSION):
        raise ValueError(f"partition.metadata: version {fields.get('version')}, only {VERSION} is known")
    if "topic_id" not in fields:
        raise ValueError("partition.metadata: no topic_id")
    return parse_topic_id(fields["topic_id"])


def encode_topic_id(topic_id: bytes) -> str:
    """A uuid as Kafka prints it: base64url without padding, 22 characters."""
    if len(topic_id) != TOPIC_ID_BYTES:
        raise ValueError(f"a topic id has {TOPIC_ID_BYTES} bytes, not {len(topic_id)}")
    return base64.urlsafe_b64encode(topic_id).rstrip(b"=").decode()


def parse_topic_id(text: str) -> bytes:
    """The 16 bytes of a uuid that Kafka printed; ``ValueError`` when it is none."""
    try:
        topic_id = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a base64url uuid") from error
    if len(topic_id) != TOPIC_ID_BYTES:
        raise ValueError(f"{text!r} is {len(topic_id)} bytes of base64url, a uuid is {TOPIC_ID_BYTES}")
    return topic_id


def encode_meta_properties(properties: Mapping[str, str]) -> bytes:
    """The content of ``meta.properties``: one ``key=value`` a line, in the order given."""
    for key, value in properties.items():
        if not key or set(key) & set("=:#!\\ \t\r\n") or set(value) & set("\\\r\n"):
            raise ValueError(f"meta.properties cannot hold {key!r}={value!r}")
    return "".join(f"{key}={value}\n" for key, value in properties.items()).encode()


def parse_meta_properties(data: bytes) -> dict[str, str]:
    """The keys and values of ``meta.properties``, as Java writes them; ``ValueError`` on any other line."""
    properties = {}
    for line in data.decode().splitlines():
        text = line.strip()
        if not text or text[0] in "#!":
            continue
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"meta.properties: no '=' in {line!r}")
        # Java escapes the colon and the equals sign in values with a backslash.
        properties[key.strip()] = value.strip().replace("\\:", ":").replace("\\=", "=").replace("\\\\", "\\")
    return properties


def _checksum_row(rows: Iterable[str]) -> str:
    crc = crc32c("".join(f"{row}\n" for row in rows).encode())
    return f"{CHECKSUM_TOPIC} 0 {crc}"


def _encode_checkpoint(lines: Iterable[str]) -> bytes:
    rows = list(lines)
    return "".join(f"{row}\n" for row in [str(VERSION), str(len(rows)), *rows]).encode()


def _parse_checkpoint(data: bytes, *, fields: int) -> list[list[str]]:
    lines = data.decode().split("\n")
    if len(lines) < 3 or lines[-1] != "":
        raise ValueError("checkpoint: cut short")
    if lines[0] != str(VERSION):
        raise ValueError(f"checkpoint: version {lines[0]!r}, only {VERSION} is known")
    rows = [line.split(" ") for line in lines[2:-1]]
    if lines[1] != str(len(rows)):
        raise ValueError(f"checkpoint: {len(rows)} entries, {lines[1]!r} announced")
    if any(len(row) != fields for row in rows):
        raise ValueError(f"checkpoint: an entry does not have {fields} fields")
    return rows
