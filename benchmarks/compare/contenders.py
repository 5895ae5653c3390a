"""All contenders, in the order in which they run."""

from __future__ import annotations

from .contender import Contender
from .peers import (
    bare,
    disk_cache,
    kafka_protocol,
    lite_queue,
    nats,
    ours,
    persist_queue,
    rabbitmq,
    redis_streams,
    sqlite,
)

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for module in (
        ours,
        bare,
        sqlite,
        persist_queue,
        lite_queue,
        disk_cache,
        kafka_protocol,
        nats,
        redis_streams,
        rabbitmq,
    )
    for contender in module.CONTENDERS
}
