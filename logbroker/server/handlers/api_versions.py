"""ApiVersions: which APIs, versions and features there are.

The response's header is of version 0 whatever the request's version (kio knows), and a request that is newer than
what is served gets a body of version 0 with error 35, from which the client learns what to ask for (KIP-511).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from ..replies import build, encode
from ..requests import Request, schema

API_KEY = 18
FEATURES = {"group.version": (0, 1), "share.version": (0, 1), "transaction.version": (0, 2)}
FIRST_WITH_MINIMUM_0 = 4  # older clients take a feature whose minimum is 0 for an error (KAFKA-17011)


def answer(request: Request, advertised: Mapping[int, range]) -> bytes:
    """The answer to a version that is served; *advertised* are the versions of each API."""
    values = {
        "api_keys": _api_keys(advertised),
        "supported_features": [
            {"name": name, "min_version": lowest, "max_version": highest}
            for name, (lowest, highest) in FEATURES.items()
            if lowest > 0 or request.version >= FIRST_WITH_MINIMUM_0
        ],
        "finalized_features_epoch": 0,
        "finalized_features": [
            {"name": name, "min_version_level": highest, "max_version_level": highest}
            for name, (_, highest) in FEATURES.items()
        ],
    }
    return request.reply(values)


def unsupported(correlation_id: int, advertised: Mapping[int, range]) -> bytes:
    """The answer to a version that is not served."""
    layout = schema(API_KEY, 0)
    values = {"error_code": ErrorCode.unsupported_version, "api_keys": _api_keys(advertised)}
    return layout.response_header(correlation_id) + encode(build(layout.response, values))


def _api_keys(advertised: Mapping[int, range]) -> list[dict[str, Any]]:
    return [
        {"api_key": key, "min_version": versions.start, "max_version": versions.stop - 1}
        for key, versions in sorted(advertised.items())
    ]
