"""CRC-32C (Castagnoli): the checksum of record batches and producer snapshots.

The ``crc32c`` package uses the processor's own instruction: 31 GB/s here for 1 MiB, against 0.5 GB/s of
crcmod, which the offline inspector uses so that writer and checker share no code. It takes any
contiguous buffer without copying it.
"""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["crc32c"]
