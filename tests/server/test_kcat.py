"""kcat, where it is installed: the client that operators reach for."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

KCAT = shutil.which("kcat") or shutil.which("kafkacat")

pytestmark = pytest.mark.skipif(KCAT is None, reason="kcat is not installed")


def kcat(server: Any, *arguments: str, lines: bytes = b"") -> bytes:
    assert KCAT is not None
    command = [KCAT, "-b", server.address, "-q", *arguments]
    return subprocess.run(command, input=lines, capture_output=True, check=True, timeout=30).stdout


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_lines_come_back_as_they_went(server: Any, codec: str) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(1000))
    kcat(server, "-P", "-t", "t", "-z", codec, lines=lines)
    assert kcat(server, "-C", "-t", "t", "-e", "-o", "beginning") == lines


def test_keys_headers_and_offsets_are_shown(server: Any) -> None:
    kcat(server, "-P", "-t", "t", "-K", ":", "-H", "kind=test", lines=b"a:1\nb:2\n")
    shown = kcat(server, "-C", "-t", "t", "-e", "-o", "beginning", "-f", "%o %k %s %h\n")
    assert shown == b"0 a 1 kind=test\n1 b 2 kind=test\n"


def test_a_group_reads_on_where_it_was(server: Any) -> None:
    kcat(server, "-P", "-t", "t", lines=b"1\n2\n")
    read = ("-G", "g", "t", "-e", "-X", "auto.offset.reset=earliest")
    assert kcat(server, *read) == b"1\n2\n"
    kcat(server, "-P", "-t", "t", lines=b"3\n")
    assert kcat(server, *read) == b"3\n"
