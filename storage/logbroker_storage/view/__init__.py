"""The shared view: LMDB tables that every process reads and writes; derived from the log, disposable."""

from .partitions import LogEnd, OpenTransaction, PartitionState, SyncPoint, partition_key
from .tables import View
from .volatile_rows import OF_PARTITION

__all__ = [
    "OF_PARTITION",
    "LogEnd",
    "OpenTransaction",
    "PartitionState",
    "SyncPoint",
    "View",
    "partition_key",
]
