"""Stand-ins for tests: a clock that is moved, file systems that fail or forget, logs made to order.

Shipped with the package because the tests of every layer, and of users, need them; nothing outside
tests imports it.
"""

from .faulty_files import FaultyFiles, ProcessKilled
from .gated_files import GatedFiles
from .log_builder import LogBuilder
from .manual_clock import ManualClock
from .memory_files import MemoryFiles
from .memory_rows import MemoryRows
from .recording_files import RecordingFiles
from .unsynced_files import UnsyncedFiles
from .workbench import Workbench, crash

__all__ = [
    "FaultyFiles",
    "GatedFiles",
    "LogBuilder",
    "ManualClock",
    "MemoryFiles",
    "MemoryRows",
    "ProcessKilled",
    "RecordingFiles",
    "UnsyncedFiles",
    "Workbench",
    "crash",
]
