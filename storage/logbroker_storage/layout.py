"""Where things lie in a data directory.

data/
  lock                    held shared by every process that has the directory open
  logs/                   a Kafka log directory: one folder a partition
    .lock                 held while a process opens or closes the directory
    meta.properties
  view.checksum           of view/data.mdb, while nobody has the directory open; beside the view, so that one that
                          is put back from a copy brings none along
  view/                   everything below is derived and disposable
    data.mdb  lock.mdb    LMDB
    writing.lock          held while something is written there
    locks/                a partition's .append and .sync locks, the journal's and the cleaner's
    processes/            one locked file for each live process
    signals/              files whose touch wakes waiters
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

MAX_PARTITIONS = 10_000  # of a topic
MAX_STEM_CHARACTERS = 200  # of a file name that is made from a user's name; a system takes 255 with suffixes


_PARTITION_FOLDER = re.compile(r"(?P<topic>[^\ud800-\udfff]+)-(?P<number>0|[1-9][0-9]{0,8})", re.DOTALL)


class DataLayout:
    """The paths of one data directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.presence_lock = f"{path}/lock"
        self.logs = f"{path}/logs"
        self.opening_lock = f"{self.logs}/.lock"
        self.meta_properties = f"{self.logs}/meta.properties"
        self.recovery_points = f"{self.logs}/recovery-point-offset-checkpoint"
        self.view = f"{path}/view"
        self.view_data = f"{self.view}/data.mdb"
        self.view_checksum = f"{path}/view.checksum"
        self.locks = f"{self.view}/locks"
        self.processes = f"{self.view}/processes"
        self.signals = f"{self.view}/signals"

    def partition(self, topic: str, partition: int) -> str:
        return f"{self.logs}/{topic}-{partition}"

    def partition_lock(self, topic: str, partition: int) -> str:
        return f"{self.locks}/{_shortened(f'{topic}-{partition}')}"

    def topic_lock(self, topic: str) -> str:
        return f"{self.locks}/{_shortened(topic)}.ids"

    def lock(self, name: str) -> str:
        return f"{self.locks}/{name}"

    def process(self, process_id: str) -> str:
        return f"{self.processes}/{process_id}"

    def signal(self, name: str) -> str:
        return f"{self.signals}/{_shortened(quote(name, safe=''))}"


def _shortened(stem: str) -> str:
    """*stem* if it can begin a file's name; else its beginning and a digest, which nobody has to read back."""
    if len(stem) <= MAX_STEM_CHARACTERS:
        return stem
    digest = hashlib.blake2b(stem.encode(), digest_size=16).hexdigest()
    return f"{stem[: MAX_STEM_CHARACTERS - len(digest) - 1]}~{digest}"


def parse_partition_folder(name: str) -> tuple[str, int] | None:
    """Topic and partition in a folder's name; None when it is no partition's folder.

    The two make that very name again: with a zero before the number, say, it is no partition's, nor with a number
    that no topic has so many partitions for, nor with bytes that are no text.
    """
    match = _PARTITION_FOLDER.fullmatch(name)
    if match is None or int(match["number"]) >= MAX_PARTITIONS:
        return None
    return match["topic"], int(match["number"])
