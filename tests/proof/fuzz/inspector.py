"""Target: the offline inspector on a directory one of whose files is the input.

The first byte chooses the file, whether the directory is taken for Kafka's, and whether batches are given right
checksums, so that what is behind them is reached. Every command is run, and then the repair, which has to keep
every byte.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import typer

from logbroker_storage.batch_header import LENGTH_PREFIX_BYTES
from logbroker_storage.crc32c import crc32c
from logbroker_storage.errors import LogbrokerError
from logbroker_storage.record_batch import CRC_START, HEADER_BYTES, ControlType, encode_values
from logbroker_storage.testing import Workbench
from logbroker_storage.testing.manual_clock import START_MS
from logbroker_tools import cli
from logbroker_tools.layout import find
from logbroker_tools.repair import repair_all

from ..damage.whole import check_kept, contents
from ..proof import delete_folder
from .target import Target, scratch_folder

FILES = (
    "t-0/00000000000000000000.log",
    "t-0/00000000000000000000.index",
    "t-0/00000000000000000000.timeindex",
    "t-0/00000000000000000000.txnindex",
    "t-0/00000000000000000004.snapshot",
    "t-0/leader-epoch-checkpoint",
    "t-0/partition.metadata",
    "__journal-0/00000000000000000000.log",
    "recovery-point-offset-checkpoint",
    "meta.properties",
)
RESEAL, KAFKA = 0x80, 0x40
# The functions behind the command line, which takes 20 ms to parse it.
COMMANDS: tuple[Callable[..., None], ...] = (
    cli.verify, cli.summary, cli.segments, cli.dump, partial(cli.dump, records=True), cli.export, cli.producers,
    cli.transactions, cli.repair,
)  # fmt: skip
OF_THE_JOURNAL: tuple[Callable[..., None], ...] = (cli.journal, cli.offsets, cli.subscriptions)


@cache
def logs_folder() -> Path:
    """A small directory with something in every file."""
    folder = scratch_folder()
    bench = Workbench(str(folder / "data"), durability="os")
    aborted = encode_values(
        [b"a", b"b"], [(0, START_MS)], producer_id=7, producer_epoch=0, base_sequence=0, transactional=True
    )
    bench.log.append(aborted)
    bench.log.append_marker(ControlType.ABORT, producer_id=7, marker_epoch=1)
    bench.put(b"c" * 5000, producer_id=8, sequence=0)
    bench.close()
    return folder / "data" / "logs"


@cache
def sound_files() -> dict[str, bytes]:
    return {str(path.relative_to(logs_folder())): path.read_bytes() for path in _files(logs_folder())}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def with_checksums(log: bytes) -> bytes:
    """*log* with the checksum of each batch set right, as far as lengths lead from one to the next."""
    sealed, position = bytearray(log), 0
    while position + HEADER_BYTES <= len(sealed):
        length = int.from_bytes(sealed[position + 8 : position + 12], "big", signed=True)
        end = position + LENGTH_PREFIX_BYTES + length
        if length < HEADER_BYTES - LENGTH_PREFIX_BYTES or end > len(sealed):
            break
        crc = crc32c(bytes(sealed[position + CRC_START : end]))
        sealed[position + CRC_START - 4 : position + CRC_START] = crc.to_bytes(4, "big")
        position = end
    return bytes(sealed)


def try_directory(data: bytes) -> None:
    choice, content = data[0] if data else 0, data[1:]
    name = FILES[(choice & ~(RESEAL | KAFKA)) % len(FILES)]
    kafka = bool(choice & KAFKA)
    if choice & RESEAL and name.endswith(".log"):
        content = with_checksums(content)
    logs = logs_folder()
    _restore(logs)
    (logs / name).write_bytes(content)
    before = {path: path.read_bytes() for path in _files(logs)}
    for command in COMMANDS:
        _inspect(partial(command, str(logs), kafka=kafka))
    for command in OF_THE_JOURNAL:
        _inspect(partial(command, str(logs)))
    target = find(str(logs), kafka=kafka)
    try:
        repair_all(target)
    except LogbrokerError:
        raise AssertionError("repair does not come to an end") from None
    for folder in {path.parent for path in before}:
        of_folder = {path.name: content for path, content in before.items() if path.parent == folder}
        check_kept(of_folder, contents(folder), name)
    assert repair_all(target) == [], "a second repair finds nothing to do"


def _inspect(command: Callable[[], None]) -> None:
    """Run a command; it ends, says that something is wrong, or raises what the command line makes a message of."""
    output, errors = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            command()
        except typer.Exit as stop:
            if stop.exit_code not in (0, 1, 3):
                raise AssertionError(f"{command} exits with {stop.exit_code}") from stop
        except (LogbrokerError, OSError):
            pass


def _restore(logs: Path) -> None:
    sound = sound_files()
    for path in _files(logs):
        if str(path.relative_to(logs)) not in sound:
            os.unlink(path)
    for name, content in sound.items():
        (logs / name).write_bytes(content)


def _delete() -> None:
    delete_folder(logs_folder().parents[1])
    logs_folder.cache_clear()
    sound_files.cache_clear()


TARGETS = {"inspector": Target(try_directory, (), address_mib=None, close=_delete)}
