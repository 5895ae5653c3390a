"""The view's tables, and the room that each has.

table         key                            value                      life                      room
meta          name                           int64, or the boot id      rebuilt                   ``environment``
ends          partition key                  LogEnd                     rebuilt from the log      ``partition_rows``
syncs         partition key                  SyncPoint                  rebuilt from the log      ``partition_rows``
producers     partition key + producer id    ProducerEntry              rebuilt from the log      ``partition_rows``
transactions  partition key + first offset   producer id                rebuilt from the log      ``partition_rows``
journal       event key                      event, as in the journal   rebuilt from the journal  ``event_rows``
changes       name of a version, and a slot  key of a changed event     gone with the view        ``changes``
state         partition key + user's key     user's value               rebuilt from the log      ``state_rows``
queues        partition key + queue's key    set by the broker          rebuilt from the journal  ``table_rows``
message_ids   topic id + message id          FirstRecord                rebuilt from the log      ``message_ids``
message_ages  topic id + age                 message id                 rebuilt from the log      ``message_ids``
volatile      set by the broker              set by the broker          gone with the view        ``volatile_rows``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changes import Changes
from .environment import META, Environment, delete_prefix
from .event_rows import EventRows
from .message_ids import MessageIds
from .partition_rows import PartitionRows
from .state_rows import StateRows
from .table_rows import TableRows
from .volatile_rows import VolatileRows

if TYPE_CHECKING:
    from .environment import Transaction

VIEW_FORMAT = 4

TABLES = (
    META,
    "ends",
    "syncs",
    "producers",
    "transactions",
    "journal",
    "changes",
    "volatile",
    "state",
    "queues",
    "message_ids",
    "message_ages",
)


class View(Environment):
    """One process's handle on the view. Safe across threads; unusable in a forked child."""

    def __init__(self, path: str) -> None:
        """Open the view at *path*; see ``Environment``."""
        super().__init__(path, TABLES)
        self.changes = Changes(self)
        self.events = EventRows(self)
        self.message_ids = MessageIds(self)
        self.state = StateRows(self)
        self.volatile = VolatileRows(self)
        self.partitions = PartitionRows(self, self.message_ids)

    def queue_rows(self, transaction: Transaction, prefix: bytes) -> TableRows:
        """The rows of one queue, as *transaction* sees and changes them."""
        return TableRows(transaction, self.tables["queues"], prefix, self.unseal)

    def drop_partition(self, transaction: Transaction, key: bytes) -> None:
        """Forget a partition in every table that has something of it; of message ids see ``MessageIds``."""
        self.partitions.drop(transaction, key)
        self.state.drop(transaction, key)
        delete_prefix(transaction, self.tables["queues"], key)
        self.volatile.drop_partition(transaction, key)
