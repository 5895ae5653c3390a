"""The rules of order, each broken: what must come before what, where a process dies or the power goes between."""

from __future__ import annotations

from .mutant import Mutant
from .syncs import BROKER, STORAGE


def _broken(module: str, rule: str, old: str, new: str, *scenarios: str) -> Mutant:
    return Mutant(rule=rule, module=module, old=old, new=new, scenarios=scenarios)


SYNCING = [
    _broken(
        f"{STORAGE}.log_growth",
        "readers see what is synced",
        "log_end_offset if visible_at_once else end.visible_offset,",
        "log_end_offset,",
        "logs.visible_records",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "a sync is published behind it",
        "self._sync_segments(state)",
        """
        self._publish(SyncPoint(state.end.log_end_offset, state.end.active_base_offset, 0))
        self._sync_segments(state)
        """,
        "logs.visible_records",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "what counts as synced is where the log ended before the sync",
        "synced_offset = state.end.log_end_offset",
        "synced_offset = log.state().end.log_end_offset",
        "logs.an_append_during_a_sync",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "a log is taken for clean before its sync begins",
        """
        if dirty_since is not None:
            log.dirty_since = None  # before the state is read: an append behind it sets this again
            state = log.state()
        self._sync_segments(state)
        """,
        """
        self._sync_segments(state)
        log.dirty_since = None
        """,
        "logs.an_interval_sync_misses_nothing",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "a sync covers the segments that were left since the last one",
        "if base >= sync.synced_segment:",
        "if base == end.active_base_offset:",
        "logs.records_synced_together",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "a segment that was left owes its indexes, too",
        "for suffix in SYNCED_SUFFIXES if is_sealed else (LOG_SUFFIX,):",
        "for suffix in (LOG_SUFFIX,):",
        "logs.sealed_indexes",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "a failed sync is never repeated",
        "self._publish(self._log.state().sync._replace(failed=1))",
        "pass",
        "logs.a_failed_sync",
    ),
    _broken(
        f"{STORAGE}.log_sync",
        "a failed log is not synced",
        """
        if state.sync.failed:
            raise self._failed("an earlier sync failed")
        """,
        "pass",
        "logs.a_failed_sync",
    ),
    _broken(
        f"{STORAGE}.adoption",
        "a failed log takes no writes",
        "if sync.failed:",
        "if False:",
        "logs.a_failed_sync",
    ),
    _broken(
        f"{STORAGE}.view.partitions",
        "readers of a failed log stop at what is synced",
        "return synced_offset if self.sync.failed else max(self.end.visible_offset, synced_offset)",
        "return max(self.end.visible_offset, synced_offset)",
        "logs.a_failed_sync_of_what_was_visible",
    ),
    _broken(
        f"{STORAGE}.data_directory",
        "a failed log is verified by whoever opens next",
        "self._verify_failed()",
        "pass",
        "recovering.a_log_whose_sync_failed",
    ),
    _broken(
        f"{STORAGE}.recovery",
        "the page cache is dropped before a log is verified",
        "log.files.drop_cache(segment.descriptor())",
        "pass",
        "recovering.a_log_whose_sync_failed",
    ),
    _broken(
        f"{STORAGE}.data_directory",
        "a recovery point names what is synced",
        "synced = self.view.partitions.synced_offsets()",
        """
        ends = self.view.partitions
        synced = {key: ends.state(key).end.log_end_offset for key in ends.synced_offsets()}
        """,
        "logs.recovery_points",
    ),
]

APPENDING = [
    _broken(
        f"{STORAGE}.partition_log",
        "a batch is written before it is published",
        "end = self.active.write(before, batch, header)",
        """
        from logbroker_storage.log_growth import behind_batch
        self.publish_end(behind_batch(before, header, created_ms=0, visible_at_once=False))
        end = self.active.write(before, batch, header)
        """,
        "logs.deaths_in_an_append",
    ),
    _broken(
        f"{STORAGE}.rolling",
        "a segment is made before it is published",
        """
        fresh.create()
        rolled = in_new_segment(end)
        try:
            log.publish_end(rolled)
        """,
        """
        rolled = in_new_segment(end)
        try:
            log.publish_end(rolled)
            fresh.create()
        """,
        "logs.deaths_in_an_append",
    ),
    _broken(
        f"{STORAGE}.rolling",
        "what a roll that died has left is removed before the next one",
        "remove_unpublished(log.files, log.directory, end.active_base_offset)",
        "pass",
        "logs.a_failed_roll",
    ),
    _broken(
        f"{STORAGE}.deduplication",
        "where the next batch with ids goes is noted before it",
        """
        if last != log.partition:
            self._view.message_ids.note_append(self._topic_id, log.partition)
        return log.append(batch, records=records)
        """,
        """
        result = log.append(batch, records=records)
        if last != log.partition:
            self._view.message_ids.note_append(self._topic_id, log.partition)
        return result
        """,
        "logs.deaths_with_message_ids",
    ),
    _broken(
        f"{STORAGE}.deduplication",
        "ids that a dead process left are known before others are looked for",
        "self._log_of(last).adopt()  # what its process left when it died there",
        "pass",
        "logs.deaths_with_message_ids",
    ),
    _broken(
        f"{STORAGE}.data_directory",
        "what a topic may hold is journaled before its first record",
        "self.journal.record([event])",
        "pass",
        "transactions.message_ids",
        "transactions.expiring_records",
    ),
    _broken(
        f"{STORAGE}.producer_ids",
        "producer ids are journaled before they are used",
        "turn.record([ProducerIdsEvent(first + count)])",
        "pass",
        "directories.producer_ids",
    ),
    _broken(
        f"{STORAGE}.producer_ids",
        "the epoch of a named producer is journaled before it is used",
        """
        event = NamedProducerEvent(name, epoch, known.producer_ids if known is not None else {})
        turn.record([event])
        """,
        "event = NamedProducerEvent(name, epoch, known.producer_ids if known is not None else {})",
        "directories.the_first_event",
    ),
]

DIRECTORIES = [
    _broken(
        f"{STORAGE}.startup",
        "meta.properties comes last in a new directory",
        """
        files.fsync_directory(os.path.dirname(layout.path))
        files.fsync_directory(layout.path)
        files.replace_file(layout.meta_properties, encode_meta_properties(META_PROPERTIES))
        """,
        """
        files.replace_file(layout.meta_properties, encode_meta_properties(META_PROPERTIES))
        files.fsync_directory(os.path.dirname(layout.path))
        files.fsync_directory(layout.path)
        """,
        "directories.a_first_opening_that_dies",
    ),
    _broken(
        f"{STORAGE}.files",
        "a file is synced before it gets its name",
        """
            files.pwrite(fd, data, 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        """,
        """
            files.pwrite(fd, data, 0)
            files.rename(path, path[: path.rindex(".", 0, -len(TEMPORARY_SUFFIX))])
            files.fsync(fd)
            files.rename(path[: path.rindex(".", 0, -len(TEMPORARY_SUFFIX))], path)
        finally:
            files.close(fd)
        """,
        "directories.a_file_replaced",
    ),
    _broken(
        f"{STORAGE}.startup",
        "a view says that it is complete when it is",
        "journal.replay()",
        """
        journal.replay()
        with view.write() as transaction:
            view.put_meta_bytes(transaction, BOOT_ID, boot_id())
            view.put_meta_int(transaction, FORMAT, VIEW_FORMAT)
            view.put_meta_int(transaction, COMPLETE, 1)
        """,
        "recovering.a_rebuild_that_dies",
    ),
    _broken(
        f"{STORAGE}.startup",
        "a view of another boot is not believed",
        "if view.meta_bytes(BOOT_ID) != boot_id():",
        "if False:",
        "directories.a_view_of_another_boot",
    ),
    _broken(
        f"{STORAGE}.catalog",
        "a topic's folders are there before its event",
        """
            self._make_partitions(event, range(partitions))
            turn.record([event])
        self._signal(SIGNAL)
        return event
        """,
        """
            turn.record([event])
            self._make_partitions(event, range(partitions))
        self._signal(SIGNAL)
        return event
        """,
        "directories.deaths_in_creating_a_topic",
    ),
    _broken(
        f"{STORAGE}.catalog",
        "added partitions' folders are there before the event",
        """
        self._make_partitions(changed, range(event.partitions, total))
        turn.record([changed])
        """,
        """
        turn.record([changed])
        self._make_partitions(changed, range(event.partitions, total))
        """,
        "directories.deaths_in_creating_a_topic",
    ),
    _broken(
        f"{STORAGE}.catalog",
        "a deletion is journaled before folders go",
        """
        items += [(key, None) for key in self._keys_about(name)]
        turn.write(items)
        """,
        """
        items += [(key, None) for key in self._keys_about(name)]
        self._move_partitions_aside(event)
        turn.write(items)
        """,
        "directories.deaths_in_deleting_a_topic",
    ),
    _broken(
        f"{STORAGE}.catalog",
        "the folders of a deleted topic are out of the way before its name is free",
        """
        doomed += self._move_partitions_aside(event)
        turn.write([(event.key(), None)])
        """,
        """
        turn.write([(event.key(), None)])
        doomed += self._move_partitions_aside(event)
        """,
        "directories.deaths_in_deleting_a_topic",
    ),
    _broken(
        f"{STORAGE}.catalog",
        "recovery points of a deleted topic are gone before its name is free",
        "self._checkpoint()",
        "pass",
        "directories.a_topic_made_anew",
    ),
    _broken(
        f"{STORAGE}.data_directory",
        "deleted records are journaled before they are gone",
        """
        turn.record([LogStartEvent(topic, partition, start)])
        return log.delete_before(start)
        """,
        """
        start = log.delete_before(start)
        turn.record([LogStartEvent(topic, partition, start)])
        return start
        """,
        "directories.records_deleted_on_request",
    ),
]

CUTTING = [
    _broken(
        f"{STORAGE}.segment_removal",
        "a log starts behind what is removed before it is removed",
        "log.publish_end(end.with_cleaning()._replace(log_start_offset=start))",
        "",
        "cleaning.deaths_in_removing_segments",
    ),
    _broken(
        f"{STORAGE}.side_files",
        "bytes are in a side file before the log loses them",
        """
        files.replace_file(side_path, files.pread(segment.descriptor(), size - position, position))
        files.truncate(segment.descriptor(), position)
        """,
        """
        content = files.pread(segment.descriptor(), size - position, position)
        files.truncate(segment.descriptor(), position)
        files.replace_file(side_path, content)
        """,
        "recovering.deaths_over_a_torn_tail",
    ),
    _broken(
        f"{STORAGE}.recovery",
        "a snapshot of records that are gone goes, too",
        "log.files.unlink(log.segment(offset).path(SNAPSHOT_SUFFIX))",
        "pass",
        "recovering.a_snapshot_of_lost_records",
    ),
    _broken(
        f"{STORAGE}.recovery",
        "that a snapshot went is synced before records come in the place of those that are gone",
        "and not (cuts or damages or dropped)",
        "and not (cuts or damages)",
        "recovering.a_snapshot_of_lost_records",
    ),
    _broken(
        f"{STORAGE}.recovery",
        "an aborted index that recovery writes, or finds, is synced before it counts as true",
        "for suffix in SYNCED_SUFFIXES:",
        "for suffix in SYNCED_SUFFIXES[:3]:",
        "recovering.an_aborted_index_found_again",
    ),
    _broken(
        f"{STORAGE}.recovery",
        "an index that is built again is synced before it counts as true",
        "unsynced = {*rebuilt, *doubtful}",
        "unsynced = set(doubtful)",
        "recovering.an_index_built_again",
    ),
    _broken(
        f"{STORAGE}.recovery",
        "a segment that begins at the recovery point is synced before it counts as synced",
        "and (end.active_base_offset < recovery_point or end.active_base_offset == 0)",
        "",
        "recovering.a_segment_begun_before_the_death",
    ),
]

COMPACTING = [
    _broken(
        f"{STORAGE}.segment_replacement",
        "segments go when the new log is in their place",
        """
        log.files.rename(cleaned, segment.path(LOG_SUFFIX))
        _finish(log.files, segment, bases[1:])
        """,
        """
        _finish(log.files, segment, bases[1:])
        log.files.rename(cleaned, segment.path(LOG_SUFFIX))
        """,
        "cleaning.deaths_in_compacting",
    ),
    _broken(
        f"{STORAGE}.segment_replacement",
        "a replacement is cleared up list first",
        """
        names = files.listdir(directory)
        lists = {name: base for name in names if (base := parse_segment_name(name, REPLACES_SUFFIX)) is not None}
        """,
        """
        names = files.listdir(directory)
        lists = {name: base for name in names if (base := parse_segment_name(name, REPLACES_SUFFIX)) is not None}
        for name in names:
            if name.endswith(f"{LOG_SUFFIX}{CLEANED_SUFFIX}"):
                files.unlink(f"{directory}/{name}")
        """,
        "cleaning.deaths_over_what_a_compaction_left",
    ),
    _broken(
        f"{STORAGE}.journal",
        "live events are written again before older ones go",
        """
        self.log.sync()
        with self._view.write() as transaction:
        """,
        """
        delete_segments_below(self.log, start_offset)
        self.log.sync()
        with self._view.write() as transaction:
        """,
        "directories.a_compacted_journal",
    ),
]

TRANSACTIONS = [
    _broken(
        f"{BROKER}.transaction",
        "records are synced before the decision",
        "self.producer = Producer(directory, sequences=self.sequences, linger=LINGER_S)",
        'self.producer = Producer(directory, sequences=self.sequences, linger=LINGER_S, acks="written")',
        "transactions.transactions",
    ),
    _broken(
        f"{BROKER}.transaction_coordinator",
        "the decision is journaled before its markers",
        "self._decide(claim, decided, commits)",
        """
        self._write_markers(decided)
        self._decide(claim, decided, commits)
        """,
        "transactions.transactions",
    ),
    _broken(
        f"{BROKER}.transaction_coordinator",
        "a dead holder's batches are known before its id is taken over",
        """
        if before is None:
            self._adopt_everywhere()
        """,
        "pass",
        "transactions.deaths_in_a_transaction",
    ),
    _broken(
        f"{BROKER}.transactional_id_expiry",
        "an id is forgotten when its last transaction has ended in every log",
        "if now_ms - event.updated_ms < EXPIRATION_MS or event.producer_id in opened:",
        "if now_ms - event.updated_ms < EXPIRATION_MS:",
        "transactions.deaths_before_an_id_is_forgotten",
    ),
    _broken(
        f"{BROKER}.queues.partition",
        "what a transaction settles is noted before it is decided",
        "self._aftermath.note(state.rows, settled)",
        "pass",
        "transactions.deaths_in_accepting",
    ),
]

MUTANTS = [*SYNCING, *APPENDING, *DIRECTORIES, *CUTTING, *COMPACTING, *TRANSACTIONS]
