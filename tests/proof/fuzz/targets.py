"""Every fuzz target by its name, which is also that of its corpus."""

from __future__ import annotations

from . import codecs, expressions, inspector, pipelines, server
from .target import Target

TARGETS: dict[str, Target] = {
    **codecs.TARGETS,
    **server.TARGETS,
    **inspector.TARGETS,
    **expressions.TARGETS,
    **pipelines.TARGETS,
}
