"""Places in a topic as users write them."""

from __future__ import annotations

import datetime

import pytest
import typer

from logbroker.cli.positions import Moment, Named, Offset, Position, Shift, parse_duration, parse_position

NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)


def parse(text: str, *, forward: bool = False) -> Position:
    return parse_position(text, now=NOW, names=tuple(Named), option="--from", forward=forward)


def ago(**parts: float) -> Moment:
    return Moment(NOW - datetime.timedelta(**parts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("earliest", Named.EARLIEST),
        ("latest", Named.LATEST),
        ("stored", Named.STORED),
        ("0", Offset(0)),
        ("1500", Offset(1500)),
        ("-100", Shift(-100)),
        ("-90s", ago(seconds=90)),
        ("-1h", ago(hours=1)),
        ("-1h30m", ago(hours=1, minutes=30)),
        ("-0.5d", ago(days=0.5)),
        ("-2w", ago(weeks=2)),
        ("-250ms", ago(milliseconds=250)),
        ("2026-11-23T10:00Z", Moment(datetime.datetime(2026, 11, 23, 10, tzinfo=datetime.UTC))),
        ("2026-11-23T10:00+02:00", Moment(datetime.datetime(2026, 11, 23, 8, tzinfo=datetime.UTC))),
        ("@1795480000", Moment(datetime.datetime.fromtimestamp(1795480000, datetime.UTC))),
        ("@1795480000.25", Moment(datetime.datetime.fromtimestamp(1795480000.25, datetime.UTC))),
        ("@1795480000250", Moment(datetime.datetime.fromtimestamp(1795480000.25, datetime.UTC))),
    ],
)
def test_each_way_to_write_a_position(text: str, expected: Position) -> None:
    assert parse(text) == expected


def test_a_time_without_a_zone_is_local() -> None:
    position = parse("2026-11-23")
    assert isinstance(position, Moment)
    assert position.time == datetime.datetime(2026, 11, 23).astimezone()


def test_forward_positions_are_for_those_who_ask_for_them() -> None:
    assert parse("+10", forward=True) == Shift(10)
    assert parse("+10s", forward=True) == Moment(NOW + datetime.timedelta(seconds=10))
    for text in ("+10", "+10s"):
        with pytest.raises(typer.BadParameter):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "yesterday", "1h", "-1x", "-h", "1.5", "-1h-2m", "@", "@-5", "2026-13-01", "-99999999999w",
        "@99999999999999999999", "9223372036854775808", "EARLIEST", "٣",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_wrong_usage_and_says_what_is(text: str) -> None:
    with pytest.raises(
        typer.BadParameter, match=r"--from .* is not understood; use earliest, latest, stored"
    ):
        parse(text)


def test_a_named_place_that_the_option_does_not_take_is_refused() -> None:
    with pytest.raises(typer.BadParameter):
        parse_position("stored", now=NOW, names=(Named.EARLIEST,), option="--to")


def test_durations() -> None:
    assert parse_duration("1h30m") == datetime.timedelta(minutes=90)
    for text in ("", "5", "-5s", "5 s", "9" * 30 + "w"):
        with pytest.raises(ValueError, match="is"):
            parse_duration(text)
