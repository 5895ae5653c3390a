"""filter: which messages go on."""

from __future__ import annotations

from logbroker_storage.errors import InvalidRequestError

from ..draft import Draft
from ..errors import StepFailed
from ..evaluation import evaluator
from ..options import Form, Step, StepOptions, Surroundings


class Filter(StepOptions, frozen=True):
    """Keep the messages for which a CEL expression is true, or drop them."""

    takes = Form.ANY
    leaves = None
    sees_tombstones = True

    keep: str | None = None
    drop: str | None = None

    def build(self, around: Surroundings) -> Step:
        if (self.keep is None) == (self.drop is None):
            raise InvalidRequestError("give one of keep and drop: an expression that is true or false")
        evaluate = evaluator(self.keep if self.keep is not None else self.drop or "")
        wanted = self.keep is not None

        def filter_draft(draft: Draft) -> Draft | None:
            result = evaluate(draft)
            if result is not True and result is not False:
                raise StepFailed(f"a condition is true or false, not {type(result).__name__}")
            return draft if result is wanted else None

        return filter_draft
