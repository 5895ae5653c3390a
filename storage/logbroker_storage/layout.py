"""Where things lie in a data directory.

data/
  lock                    held shared by every process that has the directory open
  logs/                   a Kafka log directory: one folder a partition
    .lock                 held while a process opens or closes the directory
    meta.properties
  view/                   everything below is derived and disposable
    data.mdb  lock.mdb    LMDB
    locks/                a partition's .append and .sync locks, the journal's and the cleaner's
    processes/            one locked file for each live process
    signals/              files whose touch wakes waiters
"""

from __future__ import annotations

from urllib.parse import quote


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
        self.locks = f"{self.view}/locks"
        self.processes = f"{self.view}/processes"
        self.signals = f"{self.view}/signals"

    def partition(self, topic: str, partition: int) -> str:
        return f"{self.logs}/{topic}-{partition}"

    def partition_lock(self, topic: str, partition: int) -> str:
        return f"{self.locks}/{topic}-{partition}"

    def lock(self, name: str) -> str:
        return f"{self.locks}/{name}"

    def process(self, process_id: str) -> str:
        return f"{self.processes}/{process_id}"

    def signal(self, name: str) -> str:
        return f"{self.signals}/{quote(name, safe='')}"


def parse_partition_folder(name: str) -> tuple[str, int] | None:
    """Topic and partition in a folder's name; None when it is no partition's folder."""
    topic, separator, number = name.rpartition("-")
    if not separator or not topic or not (number.isascii() and number.isdigit()):
        return None
    return topic, int(number)
