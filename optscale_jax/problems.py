"""Problems: what a sampler is asked, with the gold answer where it is known."""

import dataclasses

__all__ = ["Problem"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        id: Unique within a run; seeds and the run's log are keyed by it.
        text: The question as it is put to the sampler, before any chat template.
        answer: The gold answer; None = not known.
    """

    id: str
    text: str
    answer: str | None = None
