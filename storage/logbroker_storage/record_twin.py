"""The loops of ``record_loops``: its compiled twin where there is one, else the plain ones.

    LOGBROKER_CODEC    which is taken
    not set            the twin, if it was built from this very record_loops.py
    python             the plain loops
    compiled           the twin; ImportError where it cannot be had

A twin that stems from another text of the file (an edited checkout, say) is left alone.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from . import record_loops
from .twin_digest import source_digest

CHOICE = "LOGBROKER_CODEC"


def compiled_loops() -> ModuleType:
    """The compiled twin of ``record_loops``.

    Raises:
        ImportError: it was not built, or from other source files than those beside it.
    """
    twin = importlib.import_module("._record_loops", __package__)
    if source_digest(Path(__file__).parent) != twin.SOURCE_DIGEST:
        raise ImportError(
            "the compiled _record_loops is older than record_loops.py; install the package again"
        )
    return twin


def _chosen_loops() -> ModuleType:
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "python", "compiled"):
        raise ImportError(f"{CHOICE}={choice!r}: it is 'python', 'compiled', or not set")
    if choice == "python":
        return record_loops
    try:
        return compiled_loops()
    except ImportError:
        if choice == "compiled":
            raise
        return record_loops


_chosen = _chosen_loops()
IS_COMPILED = _chosen is not record_loops
one_length = _chosen.one_length
frame_each = _chosen.frame_each
encode_each = _chosen.encode_each
read_each = _chosen.read_each
skip_each = _chosen.skip_each
survey_each = _chosen.survey_each
