"""The shared view: LMDB tables that every process reads and writes; derived from the log, disposable."""

from .environment import OF_PARTITION, View
from .partitions import LogEnd, OpenTransaction, PartitionState, SyncPoint, partition_key

__all__ = [
    "OF_PARTITION",
    "LogEnd",
    "OpenTransaction",
    "PartitionState",
    "SyncPoint",
    "View",
    "partition_key",
]
