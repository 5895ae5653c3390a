"""``logbroker serve``: the Kafka protocol over a data directory, for clients of any language."""

from __future__ import annotations

import enum
import json
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .directory import DataOption, data_directory

if TYPE_CHECKING:
    from ..server.server import Server

DEFAULT_ADDRESS = "127.0.0.1:9092"
HEARTBEAT_S = 5.0  # unless a member would then be dead before its second one
MOST_SECONDS = (1 << 31) // 1000  # the protocol has 32 bits for milliseconds
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  (to refuse it alone)
LOG_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(enum.Enum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(enum.Enum):
    """The least severe lines that are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def parse_address(value: str, what: str) -> tuple[str, int]:
    """HOST:PORT; a host in brackets may be an IPv6 address."""
    host, separator, port = value.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise typer.BadParameter(f"{what} {value!r} is not HOST:PORT")
    if not host:
        raise typer.BadParameter(
            f"{what} {value!r} names no host; 127.0.0.1 is this machine only, 0.0.0.0 all"
        )
    host = host.removeprefix("[").removesuffix("]")
    try:
        host.encode("idna")  # as whoever resolves it does
    except UnicodeError as error:
        raise typer.BadParameter(f"{what} {value!r} cannot be a host's name: {error}") from None
    return host, int(port)


def serve(
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on; port 0 takes a free one."),
    ] = DEFAULT_ADDRESS,
    advertise: Annotated[
        str | None,
        typer.Option(
            "--advertise",
            metavar="HOST:PORT",
            help="What clients are told to connect to; default: the address listened on.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            help="Serve Prometheus metrics at http://HOST:PORT/metrics.",
            show_default=False,
        ),
    ] = None,
    auto_create: Annotated[
        bool,
        typer.Option(
            "--auto-create/--no-auto-create", help="Make topics that clients ask for, as Kafka does."
        ),
    ] = True,
    partitions: Annotated[
        int,
        typer.Option("--partitions", metavar="N", min=1, help="Of topics that are made without a number."),
    ] = 1,
    router: Annotated[
        bool, typer.Option("--router/--no-router", help="Route by the directory's bindings, too.")
    ] = True,
    group_heartbeat: Annotated[
        float | None,
        typer.Option(
            "--group-heartbeat",
            metavar="S",
            min=0.1,
            max=MOST_SECONDS,
            help=f"Of members of the KIP-848 group protocol ({HEARTBEAT_S:g}, or a third of --group-session).",
            show_default=False,
        ),
    ] = None,
    group_session: Annotated[
        float,
        typer.Option(
            "--group-session",
            metavar="S",
            min=1,
            max=MOST_SECONDS,
            help="After which such a member counts as dead.",
        ),
    ] = 45.0,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="How log lines look.")
    ] = LogFormat.TEXT,
    log_level: Annotated[
        LogLevel, typer.Option("--log-level", help="Least severe lines shown.")
    ] = LogLevel.INFO,
    data: DataOption = None,
) -> None:
    """Serve the directory to Kafka clients, until SIGTERM or Ctrl-C.

    Other processes may use the directory all the while. There is no authentication: listen on addresses that only
    trusted clients reach.
    """
    host, port = parse_address(listen, "--listen")
    advertised: tuple[str | None, int | None] = (None, None)
    if advertise is not None:
        advertised = parse_address(advertise, "--advertise")
    elif host in EVERYWHERE:
        raise typer.BadParameter(
            f"--listen {listen!r} is every address of this machine; tell clients one of them with --advertise"
        )
    metrics_address = None if metrics is None else parse_address(metrics, "--metrics")
    if group_heartbeat is None:
        group_heartbeat = min(HEARTBEAT_S, group_session / 3)
    elif group_heartbeat >= group_session:
        raise typer.BadParameter(
            f"--group-heartbeat {group_heartbeat:g} must be less than --group-session {group_session:g}: "
            "else each member counts as dead before its next heartbeat"
        )
    _set_up_logs(log_format, log_level)
    _allow_many_connections()

    from ..server.metrics import Metrics, PrometheusMetrics
    from ..server.server import serve as run_server
    from ..server.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        advertised_host=advertised[0],
        advertised_port=advertised[1],
        auto_create_topics=auto_create,
        default_partitions=partitions,
        router=router,
        group_heartbeat_ms=int(group_heartbeat * 1000),
        group_session_ms=int(group_session * 1000),
    )
    figures = Metrics() if metrics_address is None else PrometheusMetrics(*metrics_address)
    try:
        _run(run_server(data_directory(data), settings, figures, _say_where))
    finally:
        figures.close()


def _allow_many_connections() -> None:
    """As many descriptors as the system lets us have: each connection takes one, each open segment another."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        pass  # macOS allows fewer than it says; what there is will do


def _run(serving: Any) -> None:
    """On uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        import asyncio

        asyncio.run(serving)
    else:
        uvloop.run(serving)


def _say_where(server: Server) -> None:
    print(f"listening on {server.settings.host}:{server.port}", flush=True)


# Logs -----------------------------------------------------------------------------------------------------


class _JsonLines(logging.Formatter):
    """One object a line; what a line is about (peer, api, …) in fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in LOG_FIELDS}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # which has escapes for a file's name that is no text


def _set_up_logs(log_format: LogFormat, level: LogLevel) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if log_format is LogFormat.JSON:
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("logbroker")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.value.upper())
