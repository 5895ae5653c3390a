"""A disk whose power can be cut: a file system on a loop device, shut down by the ``GOINGDOWN`` ioctl.

    ioctl   _IOR('X', 125, __u32), of ext4 (EXT4_IOC_SHUTDOWN) and XFS (XFS_IOC_GOINGDOWN) alike

    how             what is on the disk afterwards
    DEFAULT         everything: the file system is frozen first, which writes it all out
    LOG_FLUSH       what was synced, and the file system's own journal up to this moment: files may have the
                    lengths, names and holes of writes whose data is gone
    NO_LOG_FLUSH    what was synced: the nearest to pulling the plug

From then on every call on the file system fails with EIO, and touching a mapped page that is not there is a SIGBUS.
Nothing of the kernel's memory of it survives unmounting, so mounting it again replays its journal from the disk.
"""

from __future__ import annotations

import enum
import fcntl
import os
import struct
import subprocess
from pathlib import Path

GOINGDOWN = 0x8004587D
IMAGE_BYTES = 400 << 20  # sparse; mkfs.xfs refuses less than 300 MiB

MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
MOUNT_OPTIONS = {
    # The ways of ext4 to order data and metadata, and to put off the choice of blocks.
    "ext4": ["data=ordered", "data=writeback", "nodelalloc", "commit=1", "data=journal"],
    "xfs": ["defaults", "wsync", "allocsize=4k"],
}


class Cut(enum.IntEnum):
    """What the file system may still write when its power goes."""

    DEFAULT = 0
    LOG_FLUSH = 1
    NO_LOG_FLUSH = 2


class Disk:
    """One image with one file system. Not thread-safe."""

    def __init__(self, folder: Path, file_system: str) -> None:
        self._image = folder / f"{file_system}.image"
        self._file_system = file_system
        self.mount_point = folder / f"{file_system}-mounted"
        self.mount_point.mkdir()
        self._options = ""

    def make(self, options: str) -> None:
        """A new, empty file system, to be mounted with *options*."""
        self._options = options
        self._image.unlink(missing_ok=True)
        self._image.touch()
        os.truncate(self._image, IMAGE_BYTES)
        call(*MKFS[self._file_system], str(self._image))

    def mount(self) -> None:
        """Attach and mount it; the loop device detaches itself when it is unmounted."""
        options = f"loop,{self._options}"
        call("mount", "-t", self._file_system, "-o", options, str(self._image), str(self.mount_point))

    def cut(self, how: Cut) -> None:
        """Cut the power."""
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, GOINGDOWN, struct.pack("=I", how))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Nobody may have a file open there."""
        call("umount", str(self.mount_point))

    def let_go(self) -> None:
        """Unmount whatever is left; for the end, when something went wrong."""
        while os.path.ismount(self.mount_point):
            call("umount", "--lazy", str(self.mount_point))


def call(*command: str) -> None:
    """Run *command*; what it says is in the exception when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr or done.stdout}")
