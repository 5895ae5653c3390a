"""The values that writers send: a name and a number, and filling that both of them decide on.

A value that was torn, mixed with another or read from elsewhere is therefore recognised for what it is.
"""

from __future__ import annotations

_FILLING = bytes(range(33, 127)) * 40  # no colon is needed behind the second one
_LARGE = 3000


def value_of(name: str, number: int) -> bytes:
    """Mostly short, every 97th large, so that batches and segments have many sizes."""
    size = _LARGE if number % 97 == 0 else number * 7919 % 300
    return b"%s:%d:%s" % (name.encode(), number, _FILLING[:size])


def read_value(value: bytes | None) -> tuple[str, int]:
    """The name and the number; raises AssertionError for what no writer has sent."""
    try:
        name, number, _ = (value or b"").split(b":", 2)
        found = name.decode(), int(number)
    except ValueError:
        raise AssertionError(f"no writer sent {value!r}") from None
    assert value == value_of(*found), f"no writer sent {value!r}"
    return found
