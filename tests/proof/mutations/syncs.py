"""The syncs of the product, each switched off: one mutant for each call that waits for the disk.

``test_mutations`` finds those calls in the source, and holds that each is switched off here, or is in
``WITHOUT_A_MUTANT`` with the reason.
"""

from __future__ import annotations

from .mutant import Mutant
from .sync_calls import SyncCall

STORAGE, BROKER, TOOLS = "logbroker_storage", "logbroker", "logbroker_tools"


def _off(module: str, line: str, rule: str, *scenarios: str, instead: str = "pass") -> Mutant:
    """*line* of *module*, which is there once, does nothing."""
    return Mutant(rule=rule, module=module, old=line, new=instead, scenarios=scenarios)


FILE_SYNCS = [
    # The seam itself.
    _off(
        f"{STORAGE}.files",
        "os.fsync(fd)",
        "fsync is the system call",
        "directories.system_calls",
    ),
    _off(
        f"{STORAGE}.files",
        """
        def fsync(self, fd: int) -> None:
            _sync(fd)
        """,
        "OsFiles.fsync syncs",
        "directories.system_calls",
        instead="def fsync(self, fd: int) -> None: ...",
    ),
    _off(
        f"{STORAGE}.files",
        "os.fdatasync(fd)",
        "OsFiles.fdatasync syncs",
        "directories.system_calls",
    ),
    _off(
        f"{STORAGE}.files",
        """
        try:
            _sync(fd)
        finally:
            os.close(fd)
        """,
        "OsFiles.fsync_directory syncs",
        "directories.system_calls",
        instead="os.close(fd)",
    ),
    _off(
        f"{STORAGE}.files",
        "files.fsync(fd)",
        "a small file that is written as a whole is synced",
        "directories.a_file_replaced",
        "directories.the_files_of_a_new_topic",
        "cleaning.replaced_files",
    ),
    _off(
        f"{STORAGE}.files",
        'files.fsync_directory(os.path.dirname(path) or ".")',
        "the name of a replaced file is synced",
        "directories.a_file_replaced",
    ),
    # A data directory.
    _off(
        f"{STORAGE}.startup",
        "files.fsync_directory(os.path.dirname(layout.path))",
        "a new data directory's own name is synced",
        "logs.acknowledged_records",
    ),
    _off(
        f"{STORAGE}.startup",
        "files.fsync_directory(layout.path)",
        "the name of logs/ is synced",
        "logs.acknowledged_records",
    ),
    _off(
        f"{STORAGE}.startup",
        "files.replace_file(layout.meta_properties, encode_meta_properties(META_PROPERTIES))",
        "meta.properties is written durably",
        "directories.what_a_log_directory_says_of_itself",
        instead="""
        fd = files.open(layout.meta_properties, create=True)
        files.pwrite(fd, encode_meta_properties(META_PROPERTIES), 0)
        files.close(fd)
        """,
    ),
    _off(
        f"{STORAGE}.startup",
        """
        create_partition_folder(files, folder, topic_id)
        files.fsync_directory(layout.logs)
        """,
        "the name of a folder that was missing is synced",
        "recovering.a_topic_without_a_folder",
        instead="create_partition_folder(files, folder, topic_id)",
    ),
    _off(
        f"{STORAGE}.strangers",
        """
        # The names of adopted folders, and of the journal's, if that was made just now.
        files.fsync_directory(layout.logs)
        """,
        "the names of the journal's folder, and of one that somebody put there, are synced",
        "directories.the_first_event",
        "recovering.a_log_put_there",
        instead="pass",
    ),
    _off(
        f"{STORAGE}.data_directory",
        "self.files.replace_file(self.layout.recovery_points, encode_partition_offsets(points))",
        "recovery points are written durably",
        "logs.recovery_points",
        instead="""
        fd = self.files.open(self.layout.recovery_points, create=True)
        self.files.pwrite(fd, encode_partition_offsets(points), 0)
        self.files.close(fd)
        """,
    ),
    # Topics.
    _off(
        f"{STORAGE}.topic_folders",
        "files.fsync_directory(directory)",
        "the names in a new partition's folder are synced",
        "directories.a_topic_created",
    ),
    _off(
        f"{STORAGE}.catalog",
        """
            create_partition_folder(self._files, folder, event.topic_id)
        self._files.fsync_directory(self._layout.logs)
        """,
        "the names of a new topic's folders are synced",
        "directories.a_topic_created",
        instead="    create_partition_folder(self._files, folder, event.topic_id)",
    ),
    _off(
        f"{STORAGE}.catalog",
        """
        self._files.fsync_directory(self._layout.logs)
        return doomed
        """,
        "the folders of a deleted topic are gone from the disk before its event is",
        "directories.a_topic_deleted",
        instead="return doomed",
    ),
    # A log.
    _off(
        f"{STORAGE}.log_sync",
        "self._log.files.fdatasync(fd)",
        "a log is synced",
        "logs.acknowledged_records",
    ),
    _off(
        f"{STORAGE}.log_sync",
        "self._log.files.fsync_directory(self._log.directory)",
        "the names of new segments are synced",
        "logs.acknowledged_records",
    ),
    _off(
        f"{STORAGE}.segment_files",
        "self._files.fdatasync(self.descriptor(ABORTED_INDEX_SUFFIX))",
        "an aborted index is synced",
        "logs.aborted_transactions",
    ),
    _off(
        f"{STORAGE}.segment_files",
        "self._files.fsync_directory(self.directory)",
        "the name of an aborted index is synced",
        "logs.aborted_transactions",
    ),
    # Recovery.
    _off(
        f"{STORAGE}.recovery",
        """
        segment.close()
        log.files.fsync_directory(log.directory)
        """,
        "the first segment of a log without files has its name synced",
        "recovering.a_log_without_files",
        instead="segment.close()",
    ),
    _off(
        f"{STORAGE}.recovery",
        "log.files.fsync(segment.descriptor(suffix))",
        "records that are found again are synced before they are shown",
        "recovering.records_found_again",
    ),
    _off(
        f"{STORAGE}.recovery",
        """
            finally:
                segment.close()
        log.files.fsync_directory(log.directory)
        """,
        "the names of segments that are found again are synced before they are shown",
        "recovering.records_found_again",
        instead="""
            finally:
                segment.close()
        """,
    ),
    _off(
        f"{STORAGE}.side_files",
        "files.replace_file(side_path, files.pread(segment.descriptor(), size - position, position))",
        "what is cut off is in a side file, synced",
        "recovering.a_torn_tail",
        instead="""
        fd = files.open(side_path, create=True)
        files.pwrite(fd, files.pread(segment.descriptor(), size - position, position), 0)
        files.close(fd)
        """,
    ),
    # Compaction.
    _off(
        f"{STORAGE}.segment_replacement",
        "log.files.fsync(fd)",
        "a rewritten log is synced",
        "cleaning.replaced_files",
    ),
    _off(
        f"{STORAGE}.segment_replacement",
        "log.files.fsync_directory(log.directory)",
        "the names of a rewritten segment are synced before the list that makes them count",
        "cleaning.replaced_files",
    ),
    _off(
        f"{STORAGE}.segment_replacement",
        "log.files.replace_file(segment.path(REPLACES_SUFFIX), content)",
        "the list of replaced segments is synced before the new log takes its place",
        "cleaning.replaced_files",
        instead="""
        fd = log.files.open(segment.path(REPLACES_SUFFIX), create=True)
        log.files.pwrite(fd, content, 0)
        log.files.close(fd)
        """,
    ),
    _off(
        f"{STORAGE}.segment_replacement",
        """
        directory = segment.directory
        files.fsync_directory(directory)
        """,
        "the new log's name is synced before the segments go that it replaces",
        "cleaning.replaced_files",
        instead="directory = segment.directory",
    ),
    _off(
        f"{STORAGE}.segment_replacement",
        """
        files.fsync_directory(directory)
        files.unlink(segment.path(REPLACES_SUFFIX))
        """,
        "replaced segments are gone from the disk before their list is",
        "cleaning.replaced_files",
        instead="files.unlink(segment.path(REPLACES_SUFFIX))",
    ),
    _off(
        f"{STORAGE}.segment_replacement",
        """
        if lists:
            files.fsync_directory(directory)
        """,
        "a list that counts no more is gone from the disk before what would make it count",
        "cleaning.a_list_that_counts_no_more",
    ),
    _off(
        f"{STORAGE}.segment_removal",
        "log.files.fsync_directory(log.directory)",
        "a removed segment is gone from the disk before the next one goes",
        "cleaning.removed_segments",
    ),
    _off(
        f"{STORAGE}.snapshot_files",
        "files.fsync(fd)",
        "snapshots of producers are synced before the segments go that they alone remember",
        "cleaning.producers_of_removed_segments",
    ),
    _off(
        f"{STORAGE}.snapshot_files",
        """
                files.close(fd)
        files.fsync_directory(directory)
        """,
        "the names of such snapshots are synced before the segments go",
        "cleaning.producers_of_removed_segments",
        instead="""
                files.close(fd)
        """,
    ),
    # The inspector.
    _off(
        f"{TOOLS}.repair",
        "files.fsync(fd)",
        "repair: a cut is synced",
        "repairing.a_repaired_log",
    ),
    _off(
        f"{TOOLS}.repair",
        "files.replace_file(step.path, _built(step.path, is_ours=is_ours))",
        "repair: an index is written durably",
        "repairing.a_repaired_index",
        instead="""
        fd = files.open(step.path, create=True)
        files.truncate(fd, 0)
        files.pwrite(fd, _built(step.path, is_ours=is_ours), 0)
        files.close(fd)
        """,
    ),
    _off(
        f"{TOOLS}.repair",
        'files.fsync_directory(os.path.dirname(step.path) or ".")',
        "repair: what is set aside is so on the disk",
        "repairing.a_repaired_folder",
    ),
    _off(
        f"{TOOLS}.repair",
        "files.fsync(side)",
        "repair: what is cut off is in a side file, synced",
        "repairing.a_repaired_log",
    ),
    _off(
        f"{TOOLS}.repair",
        'files.fsync_directory(os.path.dirname(side_path) or ".")',
        "repair: the side file's name is synced before the cut",
        "repairing.a_repaired_log",
    ),
]

# Where a sync of the journal is left out, its log is said to be synced: whoever looks for an event in it would
# wait for that for ever.
WAITS = [
    # The cleaner.
    _off(
        f"{STORAGE}.cleaner",
        "log.sync()",
        "a log is synced before it is compacted",
        "cleaning.producers_of_compacted_records",
    ),
    # A log.
    _off(
        f"{STORAGE}.partition_log",
        "self.sync(end_offset)",
        "an acknowledgement waits for the disk",
        "logs.waiting_until_durable",
    ),
    _off(
        f"{STORAGE}.partition_log",
        "return self.syncing.sync(end_offset, also)",
        "a log is synced when it is asked to",
        "logs.acknowledged_records",
        instead="return end_offset",
    ),
    _off(
        f"{STORAGE}.partition_log",
        "self.sync(min(offset, offsets.log_end_offset))  # another's sync, as we wait for it, may be enough",
        "nothing below a committed offset can be lost",
        "logs.sync_below",
    ),
    _off(
        f"{STORAGE}.partition_log",
        """
        leave_caches(self, self.active)
        self.sync()
        """,
        "a clean close syncs",
        "logs.closing",
        instead="leave_caches(self, self.active)",
    ),
    _off(
        f"{STORAGE}.data_directory",
        "self.log(name, number).sync()",
        "a topic that becomes durable is synced",
        "logs.a_change_to_fsync",
    ),
    _off(
        f"{STORAGE}.data_directory",
        "log.sync_below(event.offset)",
        "clients' offsets are committed behind a sync of the log",
        "transactions.offsets_that_clients_commit",
    ),
    _off(
        f"{STORAGE}.maintenance",
        "log.sync()",
        "durability=interval is synced",
        "logs.an_interval_that_passes",
    ),
    # The journal.
    _off(
        f"{STORAGE}.journal",
        "self.log.sync(end_offset, also=put)",
        "an event is synced before it is shown",
        "directories.journaled_events",
        instead="""
        sync = self.log.state().sync._replace(synced_offset=end_offset)
        self.log.view.partitions.publish_sync(self.log.key, sync)
        """,
    ),
    _off(
        f"{STORAGE}.journal",
        """
        self.log.sync(end_offset)
        self._apply_from_log(end_offset)
        """,
        "the events of a dead process are synced before they are shown",
        "directories.events_of_the_dead",
        instead="""
        sync = self.log.state().sync._replace(synced_offset=end_offset)
        self.log.view.partitions.publish_sync(self.log.key, sync)
        self._apply_from_log(end_offset)
        """,
    ),
    _off(
        f"{STORAGE}.journal",
        "self.log.sync()",
        "a compacted journal is synced before the old one goes",
        "directories.a_compacted_journal",
    ),
    _off(
        f"{STORAGE}.deduplication",
        "log.sync_below(end_offset)",
        "the first record of an id is synced before its duplicate is acknowledged",
        "transactions.a_duplicate_elsewhere",
    ),
    # Producers.
    _off(
        f"{BROKER}.delivery",
        "queue.log.wait_durable(end_offset)",
        "a receipt waits for the disk",
        "transactions.a_producers_receipts",
    ),
    _off(
        f"{BROKER}.delivery",
        """
        for queue in list(self._queues):
            self.sync(queue)
        """,
        "closing a producer syncs what it has only written",
        "transactions.a_careless_producer_that_is_closed",
    ),
    _off(
        f"{BROKER}.delivery",
        "queue.window.wait_durable(first.partition, first.offset + 1)",
        "a duplicate's first record in another partition is synced",
        "transactions.a_duplicate_elsewhere",
    ),
    _off(
        f"{BROKER}.linger",
        "delivery.sync(queue)",
        "what was only written is synced soon after",
        "transactions.what_was_only_written",
    ),
    _off(
        f"{BROKER}.named_producer",
        "queue.log.wait_durable(queue.log.offsets().log_end_offset)",
        "the last sequence that a named producer is told is on the disk",
        "transactions.a_named_producers_last_sequence",
    ),
    # Readers.
    _off(
        f"{BROKER}.arrivals",
        "cursor.log.sync()",
        "a waiting consumer has records synced that nobody syncs",
        "transactions.a_consumer_that_waits",
    ),
    _off(
        f"{BROKER}.commits",
        "cursor.log.sync_below(offset)",
        "a group's commit is behind a sync of the log",
        "transactions.committed_offsets",
    ),
    _off(
        f"{BROKER}.group_admin",
        "log.sync_below(offset)",
        "a group is reset behind a sync of the log",
        "transactions.a_group_that_is_reset",
    ),
    _off(
        f"{BROKER}.subscriptions",
        "log.sync_below(offset)",
        "a subscription begins behind a sync of the log",
        "transactions.a_subscription_that_begins",
    ),
    _off(
        f"{BROKER}.routing.bindings",
        "log.sync_below(start)  # it is committed for the group, and a power cut must not leave it above the end",
        "a binding begins behind a sync of the log",
        "transactions.a_binding_that_begins",
    ),
    _off(
        f"{BROKER}.queues.partition",
        "self.log.sync_below(offset)",
        "a queue is reset behind a sync of the log",
        "transactions.a_queue_that_is_reset",
    ),
    _off(
        f"{BROKER}.queues.partition",
        "self.log.sync_below(due.visible_end)",
        "a queue hands out what is on the disk",
        "transactions.messages_handed_out",
    ),
    # Transactions.
    _off(
        f"{BROKER}.transaction_coordinator",
        """
            before_offset=before_offset,
        )
        log.wait_durable(log.offsets().log_end_offset)
        """,
        "markers are synced before their decision may be replaced",
        "transactions.transactions",
        instead="""
            before_offset=before_offset,
        )
        """,
    ),
    _off(
        f"{BROKER}.transactional_id_expiry",
        "directory.log(*place).sync()",
        "markers are synced before their decision is forgotten, whatever the topic's durability",
        "transactions.forgotten_ids",
    ),
    # The server.
    _off(
        f"{BROKER}.server.disk_sync",
        "return log.sync(end_offset)",
        "the server syncs before it answers",
        "serving.produced_records",
        "serving.produced_records_of_which_more_come",
        instead="return log.offsets().log_end_offset",
    ),
    _off(
        f"{BROKER}.server.handlers.produce",
        "node.sync.sync(log, end_offset)",
        "what is produced is synced where it is appended",
        "serving.produced_records",
    ),
    _off(
        f"{BROKER}.server.disk_sync",
        "if await asyncio.shield(self._running_sync(log)) < end_offset:",
        "the server syncs before it answers, while it appends what comes next",
        "serving.produced_records_of_which_more_come",
        instead="if log.offsets().log_end_offset < end_offset:",
    ),
    _off(
        f"{BROKER}.server.disk_sync",
        "task = asyncio.get_running_loop().create_task(self.durable(log, end_offset))",
        "a sync that is begun goes on until the records are durable",
        "serving.produced_records_of_which_more_come",
        instead="task = asyncio.get_running_loop().create_task(asyncio.sleep(0))",
    ),
    _off(
        f"{BROKER}.server.handlers.offsets",
        "directory.sync_below(events)",
        "a client's commit is behind a sync of the log",
        "serving.offsets_committed_by_clients",
    ),
    _off(
        f"{BROKER}.server.network_transactions",
        "self._directory.sync_below(events)",
        "a client's commit in a transaction is behind a sync of the log",
        "serving.offsets_in_transactions_of_clients",
    ),
    _off(
        f"{BROKER}.server.network_transactions",
        "log.wait_durable(log.offsets().log_end_offset)",
        "what a client's transaction has written is synced before the decision",
        "serving.transactions_of_clients",
    ),
]

WITHOUT_A_MUTANT = {
    SyncCall(f"{STORAGE}.files", "OsFiles.fdatasync", "_sync(fd)"): "only on macOS, where it is F_FULLFSYNC",
    SyncCall(
        f"{STORAGE}.files", "OsFiles.replace_file", "replace_file(self, path, data)"
    ): "passes on to the function, whose two syncs have mutants; without it there would be no file",
    SyncCall(
        f"{BROKER}.transaction_coordinator",
        "TransactionCoordinator._abort_stranger",
        "log.wait_durable(log.offsets().log_end_offset)",
    ): "an abort that is lost is written again, and nothing else was decided meanwhile: nobody can decide such a "
    "transaction. It shows the records behind it at once, instead of when somebody has waited for them for 2 s",
    SyncCall(
        f"{BROKER}.delivery", "Delivery._lead", "self.sync(queue)"
    ): "without it no receipt is ever settled, and "
    "whoever waits for one waits for ever; what it waits for has a mutant",
    SyncCall(
        f"{BROKER}.server.handlers.groups",
        "sync_group",
        "group.sync(asked, node.groups.shapes(), node.groups.now_ms())",
    ): "SyncGroup of Kafka's protocol; no disk is meant",
    SyncCall(
        f"{BROKER}.server.handlers.groups", "sync_group", "group.sync(asked, token, node.groups.now_ms())"
    ): "the same",
}
