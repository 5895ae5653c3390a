"""Configuration: of topics and share groups; of the broker to look at only.

DescribeConfigs, ListConfigResources, AlterConfigs, IncrementalAlterConfigs. Kafka's loggers and client
metrics are not there: what is asked of them is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from logbroker_storage.errors import InvalidConfigError, LogbrokerError
from logbroker_storage.log_config import ConfigValue, LogConfig, config_keys

from ...topic_names import check_group_name, check_topic_name
from ..error_codes import RefusedError, told_of
from ..node import NODE_ID, Node
from ..replies import Values
from ..requests import Request
from ..share_config import DOCS as SHARE_DOCS
from ..share_config import ISOLATION_LEVEL, NUMBERS, as_config, check_config

TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP = 2, 4, 8, 16, 32
SOURCE_TOPIC, SOURCE_STATIC_BROKER, SOURCE_DEFAULT, SOURCE_GROUP = 1, 4, 5, 8
SET, DELETE, APPEND, SUBTRACT = range(4)
BOOLEAN, STRING, INT, LONG, DOUBLE, LIST = 1, 2, 3, 5, 6, 7
ALL_BROKERS = ""
TYPES = {"int": LONG, "float": DOUBLE, "string": STRING}
LISTS = ("cleanup.policy",)
FIRST_WITH_TYPES = 1  # ListConfigResources; before it is about client metrics alone

MIN_INSYNC_REPLICAS = "min.insync.replicas"
# What a topic has beside its configuration: Kafka's tools look these up and do not ask whether they are there.
FIXED = {MIN_INSYNC_REPLICAS: "1"}

_DOCS = {key.name: key.doc for key in config_keys()}
_DOCS[MIN_INSYNC_REPLICAS] = "how many replicas have a record before it is acknowledged: there is one"
_TYPES = {key.name: LIST if key.name in LISTS else TYPES[key.type] for key in config_keys()}
_TYPES[MIN_INSYNC_REPLICAS] = INT


def overrides(config: LogConfig) -> Iterator[tuple[str, str, int]]:
    """Each key of a topic with its value, and where that comes from."""
    own = config.overrides
    for name, value in (config.as_dict() | FIXED).items():
        yield name, value, SOURCE_TOPIC if name in own else SOURCE_DEFAULT


# Looking --------------------------------------------------------------------------------------------------


async def list_resources(node: Node, request: Request) -> bytes:
    """The resources that have a configuration: all topics, the broker, and groups that were given one."""
    if request.version < FIRST_WITH_TYPES:
        return request.reply({"config_resources": []})
    names: dict[int, list[str]] = {
        TOPIC: [event.name for event in node.topics()],
        BROKER: [str(NODE_ID)],
        BROKER_LOGGER: [str(NODE_ID)],
        CLIENT_METRICS: [],
        GROUP: node.share.configured(),
    }
    wanted = set(request.body.resource_types) or set(names)
    if not wanted <= set(names):
        return request.reply({"error_code": ErrorCode.unsupported_version, "config_resources": []})
    resources = [
        {"resource_name": name, "resource_type": kind} for kind in sorted(wanted) for name in names[kind]
    ]
    return request.reply({"config_resources": resources})


async def describe(node: Node, request: Request) -> bytes:
    body = request.body
    return request.reply({"results": [_described(node, resource, body) for resource in body.resources]})


def _described(node: Node, resource: Any, body: Any) -> Values:
    described: dict[str, Any] = {
        "error_message": None,
        "resource_type": resource.resource_type,
        "resource_name": resource.resource_name,
    }
    try:
        entries = _entries(node, resource, getattr(body, "include_documentation", False))
    except LogbrokerError as error:
        return described | told_of(error) | {"configs": []}
    wanted = resource.configuration_keys
    described["configs"] = [
        entry if body.include_synonyms else entry | {"synonyms": []}
        for entry in entries
        if not wanted or entry["name"] in wanted
    ]
    return described


def _entries(node: Node, resource: Any, with_docs: bool) -> list[dict[str, Any]]:
    if resource.resource_type == TOPIC:
        config = LogConfig.parse(node.directory.topic(resource.resource_name).config)
        return [
            _entry(
                name,
                value,
                source,
                _TYPES[name],
                _DOCS[name] if with_docs else None,
                read_only=name in FIXED,
            )
            for name, value, source in overrides(config)
        ]
    if resource.resource_type == BROKER:
        _check_broker(resource.resource_name)
        if resource.resource_name == ALL_BROKERS:
            return []  # what was set for all of them at run time: nothing can be
        return [
            _entry(name, value, SOURCE_STATIC_BROKER, kind, None, read_only=True)
            for name, value, kind in _of_broker(node)
        ]
    if resource.resource_type == GROUP:
        return _of_group(node, resource.resource_name, with_docs=with_docs)
    if resource.resource_type == BROKER_LOGGER:
        _check_broker(resource.resource_name)
        return []
    if resource.resource_type == CLIENT_METRICS:
        return []
    raise RefusedError(ErrorCode.invalid_request, f"resources of type {resource.resource_type} have none")


def _of_group(node: Node, group_id: str, *, with_docs: bool) -> list[dict[str, Any]]:
    subscription = node.share.subscription(group_id)
    own = node.share.config(check_group_name(group_id))
    return [
        _entry(
            name,
            value,
            SOURCE_GROUP if name in own else SOURCE_DEFAULT,
            INT if name in NUMBERS else STRING,
            SHARE_DOCS[name] if with_docs else None,
            read_only=name == ISOLATION_LEVEL,
        )
        for name, value in as_config(own, None if subscription is None else subscription.rules).items()
    ]


def _check_broker(name: str) -> None:
    if name not in (ALL_BROKERS, str(NODE_ID)):
        raise RefusedError(ErrorCode.invalid_request, f"there is no broker {name!r}")


def _of_broker(node: Node) -> list[tuple[str, str, int]]:
    settings = node.settings
    return [
        ("advertised.listeners", f"PLAINTEXT://{node.host}:{node.port}", STRING),
        ("auto.create.topics.enable", str(settings.auto_create_topics).lower(), BOOLEAN),
        ("broker.id", str(NODE_ID), INT),
        ("fetch.max.bytes", str(settings.max_fetch_bytes), INT),
        ("log.dirs", node.directory.layout.logs, STRING),
        ("num.partitions", str(settings.default_partitions), INT),
        ("socket.request.max.bytes", str(settings.max_request_bytes), INT),
    ]


def _entry(
    name: str, value: str, source: int, kind: int, documentation: str | None, *, read_only: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "value": value,
        "read_only": read_only,
        "config_source": source,
        "is_sensitive": False,
        "synonyms": [{"name": name, "value": value, "source": source}],
        "config_type": kind,
        "documentation": documentation,
    }


# Changing -------------------------------------------------------------------------------------------------


async def alter(node: Node, request: Request) -> bytes:
    """The whole configuration at once: a key that is not named goes back to its default."""
    return await _change(node, request, _replaced)


def _replaced(_values: Mapping[str, str], own: Iterable[str], resource: Any) -> dict[str, ConfigValue | None]:
    changes: dict[str, ConfigValue | None] = dict.fromkeys(own)
    changes.update({item.name: item.value for item in resource.configs})
    return changes


async def alter_incrementally(node: Node, request: Request) -> bytes:
    return await _change(node, request, _changes)


def _changes(values: Mapping[str, str], _own: Iterable[str], resource: Any) -> dict[str, ConfigValue | None]:
    changes: dict[str, ConfigValue | None] = {}
    for item in resource.configs:
        if item.name in changes:
            raise RefusedError(ErrorCode.invalid_request, f"{item.name} is named twice")
        if item.config_operation == DELETE:
            # Kafka's tools take back what nobody has set, and nothing here knows: throttles of replicas, for one.
            if item.name in values:
                changes[item.name] = None
        elif item.config_operation == SET:
            if item.value is None:
                raise RefusedError(ErrorCode.invalid_request, f"{item.name} has no value")
            changes[item.name] = item.value
        elif item.config_operation in (APPEND, SUBTRACT):
            if item.name not in LISTS:
                raise InvalidConfigError(item.name, f"{item.name} is no list: it can only be set or deleted")
            before = values.get(item.name, "").split(",")
            changes[item.name] = ",".join(_edited(before, item))
        else:
            raise RefusedError(ErrorCode.invalid_request, f"operation {item.config_operation} is unknown")
    return changes


def _edited(before: Iterable[str], item: Any) -> list[str]:
    named = [part.strip() for part in (item.value or "").split(",")]
    if item.config_operation == SUBTRACT:
        return [part for part in before if part not in named]
    return list(dict.fromkeys([*before, *named]))


async def _change(node: Node, request: Request, changes_of: Any) -> bytes:
    body = request.body
    responses = []
    for resource in body.resources:
        response: dict[str, Any] = {
            "error_message": None,
            "resource_type": resource.resource_type,
            "resource_name": resource.resource_name,
        }
        try:
            await _change_one(node, resource, changes_of, validate_only=body.validate_only)
        except LogbrokerError as error:
            response |= told_of(error)
        responses.append(response)
    return request.reply({"responses": responses})


async def _change_one(node: Node, resource: Any, changes_of: Any, *, validate_only: bool) -> None:
    if resource.resource_type == GROUP:
        await _change_group(node, resource, changes_of, validate_only=validate_only)
        return
    if resource.resource_type == BROKER:
        _check_broker(resource.resource_name)
        if not changes_of({}, (), resource):
            return  # only what was not set is taken back
    if resource.resource_type != TOPIC:
        raise RefusedError(
            ErrorCode.invalid_request,
            "only topics and groups can be changed; the broker is told when it is started",
        )
    config = LogConfig.parse(node.directory.topic(check_topic_name(resource.resource_name)).config)
    changes = changes_of(config.as_dict(), config.overrides, resource)
    config.with_changes(changes)
    if not validate_only:
        await node.run(node.directory.alter_topic, resource.resource_name, changes)


async def _change_group(node: Node, resource: Any, changes_of: Any, *, validate_only: bool) -> None:
    group_id = check_group_name(resource.resource_name)

    def changed(own: dict[str, str]) -> dict[str, str]:
        changes = changes_of(as_config(own, None), own, resource)
        config = own | {name: value for name, value in changes.items() if value is not None}
        return {name: value for name, value in config.items() if changes.get(name, "") is not None}

    check_config(changed(node.share.config(group_id)))
    if not validate_only:
        await node.run(node.share.change_config, group_id, changed)
