"""Transformations: pipelines of steps that make messages of records.

    pipeline = load_pipeline("clean.toml")
    broker.transform("raw", "clean", group="cleaner", function=pipeline, dead_letter="raw.dead")

``docs/transforms.md`` has an example of each step. All but ``loading`` is pure:

loading      where pipelines come from: TOML, a mapping, a function, an entry point
catalog      every kind of step, by its name in TOML
options      what all kinds have in common
steps/       the kinds, one module a family; formats/ one module a format
pipeline     steps in a row, and what is made of a record by them
draft        a message on its way
evaluation   CEL over a draft
paths        places in a decoded value
values       decoded values as bytes and text
errors       what goes wrong with a message, or inside a step
"""

from __future__ import annotations

from .draft import Draft
from .errors import StepFailed, TransformError
from .loading import PipelineError, load_pipeline
from .pipeline import Pipeline

__all__ = ["Draft", "Pipeline", "PipelineError", "StepFailed", "TransformError", "load_pipeline"]
