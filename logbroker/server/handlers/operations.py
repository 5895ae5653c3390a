"""Authorized operations: what whoever asks may do with a resource.

There is no authorizer, so that it is everything that can be done with a resource of its kind, as in Kafka without
one. Bit *n* of the field stands for the operation with code *n* (Kafka's AclOperation).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from kio.schema.errors import ErrorCode

from ..replies import Values
from ..requests import Request

NOT_ASKED_FOR = -(1 << 31)


class Operation(enum.IntEnum):
    READ = 3
    WRITE = 4
    CREATE = 5
    DELETE = 6
    ALTER = 7
    DESCRIBE = 8
    CLUSTER_ACTION = 9
    DESCRIBE_CONFIGS = 10
    ALTER_CONFIGS = 11
    IDEMPOTENT_WRITE = 12


def bit_field(operations: Iterable[Operation]) -> int:
    return sum(1 << operation for operation in set(operations))


_CONFIGS = (Operation.DESCRIBE_CONFIGS, Operation.ALTER_CONFIGS)
OF_TOPIC = bit_field(
    [
        Operation.READ,
        Operation.WRITE,
        Operation.CREATE,
        Operation.DELETE,
        Operation.ALTER,
        Operation.DESCRIBE,
        *_CONFIGS,
    ]
)
OF_GROUP = bit_field([Operation.READ, Operation.DELETE, Operation.DESCRIBE, *_CONFIGS])
OF_CLUSTER = bit_field(
    [
        Operation.CREATE,
        Operation.ALTER,
        Operation.DESCRIBE,
        Operation.CLUSTER_ACTION,
        Operation.IDEMPOTENT_WRITE,
        *_CONFIGS,
    ]
)


def if_asked_for(request: Request, field: str, operations: int) -> int:
    """*operations*, if *field* of the request, which not every version has, asks for them."""
    return operations if getattr(request.body, field, False) else NOT_ASKED_FOR


def with_operations(request: Request, groups: Iterable[Values]) -> list[Values]:
    """Descriptions of *groups* with the operations, where there is such a group, and they are asked for."""
    operations = if_asked_for(request, "include_authorized_operations", OF_GROUP)
    return [
        {
            **group,
            "authorized_operations": operations
            if group.get("error_code", ErrorCode.none) is ErrorCode.none
            else NOT_ASKED_FOR,
        }
        for group in groups
    ]
