"""ACLs, SCRAM credentials and client quotas: there are none, because no client is told from another.

Answers are those of a Kafka broker without an authorizer, without a user and without a quota.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from ..error_codes import RefusedError, told_of
from ..node import Node
from ..replies import Values
from ..requests import Request

EXACT, DEFAULT, ANY = range(3)  # how a filter of quotas matches an entity
IP, USER, CLIENT_ID = "ip", "user", "client-id"

_NO_AUTHORIZER: Values = {
    "error_code": ErrorCode.security_disabled,
    "error_message": "There is no authorizer: whoever connects may do everything.",
}


# ACLs -------------------------------------------------------------------------------------------------------


async def describe_acls(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    return request.reply({**_NO_AUTHORIZER, "resources": []})


async def create_acls(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    return request.reply({"results": [_NO_AUTHORIZER] * len(request.body.creations)})


async def delete_acls(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    refused = {**_NO_AUTHORIZER, "matching_acls": []}
    return request.reply({"filter_results": [refused] * len(request.body.filters)})


# Users ------------------------------------------------------------------------------------------------------


async def describe_scram_credentials(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    names = Counter(user.name for user in request.body.users or ())
    results = [_described(name, times=times) for name, times in names.items()]  # each is answered once
    return request.reply({"error_message": None, "results": results})


def _described(name: str, *, times: int) -> Values:
    described = {"user": name, "credential_infos": []}
    if times > 1:
        return described | {
            "error_code": ErrorCode.duplicate_resource,
            "error_message": f"user {name!r} is named twice",
        }
    return described | {
        "error_code": ErrorCode.resource_not_found,
        "error_message": f"there is no user {name!r}",
    }


# Quotas -----------------------------------------------------------------------------------------------------


async def describe_client_quotas(node: Node, request: Request) -> bytes:  # noqa: ARG001 (a handler)
    try:
        _check_filter(request.body.components)
    except RefusedError as error:
        return request.reply(told_of(error) | {"entries": None})
    return request.reply({"error_message": None, "entries": []})


def _check_filter(components: Iterable[Any]) -> None:
    """That entities can be found by *components*.

    Raises:
        RefusedError: says why not.
    """
    named: set[str] = set()
    for component in components:
        entity_type = component.entity_type
        if not entity_type or entity_type in named:
            raise RefusedError(
                ErrorCode.invalid_request, f"entity type {entity_type!r} is empty, or named twice"
            )
        if entity_type not in (IP, USER, CLIENT_ID):
            raise RefusedError(ErrorCode.unsupported_version, f"there is no entity type {entity_type!r}")
        if component.match_type not in (EXACT, DEFAULT, ANY):
            raise RefusedError(ErrorCode.invalid_request, f"match type {component.match_type} is unknown")
        if (component.match is None) is (component.match_type == EXACT):
            raise RefusedError(ErrorCode.invalid_request, "a name is for an exact match, and for no other")
        named.add(entity_type)
    if IP in named and len(named) > 1:
        raise RefusedError(ErrorCode.invalid_request, "an address goes with no other entity type")
