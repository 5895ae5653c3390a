"""In whose hands a message is: an owner's name, and what it tells.

owner                    is                                                      holds until
<process id>/<member>    a consumer in that process, or a session of its server  the lease ends, or the process
~<16 hex digits>         whoever has the receipt handle, in whatever process     the lease ends
"""

from __future__ import annotations

import secrets

from logbroker_storage.data_directory import DataDirectory

NOBODYS = "~"


def owner_name(directory: DataDirectory, member: str) -> str:
    """The owner that *member* of this process is: it lives no longer than the process."""
    return f"{directory.process_id}/{member}"


def detached_owner() -> str:
    """A new owner that outlives this process."""
    return NOBODYS + secrets.token_hex(8)


def is_detached(owner: str) -> bool:
    """Whether *owner* belongs to no process: only the end of the lease takes what it holds."""
    return owner.startswith(NOBODYS)


def is_dead(directory: DataDirectory, owner: str) -> bool:
    """Whether nobody can settle what *owner* holds."""
    return not is_detached(owner) and not directory.process_alive(process_of(owner))


def process_of(owner: str) -> str:
    """The process that an owner of ``owner_name`` lives in."""
    return owner.partition("/")[0]
