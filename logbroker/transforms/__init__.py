"""Transformations: pipelines of steps that make messages of records.

    pipeline = load_pipeline("clean.toml")
    broker.transform("raw", "clean", group="cleaner", function=pipeline, dead_letter="raw.dead")

``docs/transforms.md`` has an example of each step.
"""

from __future__ import annotations

from .draft import Draft
from .errors import StepFailed, TransformError
from .loading import PipelineError, load_pipeline
from .pipeline import Pipeline

__all__ = ["Draft", "Pipeline", "PipelineError", "StepFailed", "TransformError", "load_pipeline"]
