"""Checks the reading and the comparison of answers on a benchmark's own solutions.

    python -m eval.check_answers math500.jsonl gsm8k.jsonl

A file has one JSON object a line, with `answer` and, for a benchmark whose answers are bare, with
the worked `solution`. Where there is a solution, the answer read from it must be judged equal to
`answer`; where `answer` is a worked solution itself, as GSM8K's is, a number must be read from it.
Exit code 1 if fewer than `--least` of a file's records pass.
"""

import dataclasses
import sys
from pathlib import Path

from optscale_jax.answers import extract_answer, normalize_answer
from optscale_jax.checks import positive, within
from optscale_jax.cli import command
from optscale_jax.equivalence import EquivalenceChecker
from optscale_jax.readers.records import Record, read_records

__all__ = ["CheckAnswersConfig", "main"]


@dataclasses.dataclass(frozen=True)
class CheckAnswersConfig:
    """What to check.

    Attributes:
        files: JSON lines files; their names may stand alone, before the options. Needed.
        least: Share of a file's records to pass, in [0, 1].
        seconds: Time limit of a comparison, above 0.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    least: float = 0.995
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files are not given; name some")
        within(self, "[0, 1]", "least")
        positive(self, "seconds")


def run(config: CheckAnswersConfig) -> int:
    """Checks the files; returns 1 where one has too few records that pass."""
    with EquivalenceChecker(seconds=config.seconds, workers=1) as equal:
        shares = [_check(Path(file), equal) for file in config.files]
    return int(min(shares) < config.least)


def _check(path: Path, equal: EquivalenceChecker) -> float:
    faults = [(record.place, _fault(record, equal)) for record in read_records(path)]
    wrong = [f"  {place}: {fault}" for place, fault in faults if fault is not None]
    print(*wrong[:20], f"{path.name}: {len(faults) - len(wrong)} of {len(faults)}", sep="\n")
    return 1 - len(wrong) / len(faults)


def _fault(record: Record, equal: EquivalenceChecker) -> str | None:
    answer = record.label("answer")
    found = extract_answer(record.value.get("solution", answer))
    if "solution" in record.value:
        if found is None or not equal(answer, found):
            return f"solution gives {found!r}, answer is {answer!r}"
        return None
    if "####" not in answer:
        return None  # a bare answer, with nothing beside it to compare it with
    if found is None or not normalize_answer(found).lstrip("-").replace("/", "", 1).isdecimal():
        return f"no number in {answer[-40:]!r}"
    return None


main = command(CheckAnswersConfig, run, __name__, positional="files")

if __name__ == "__main__":
    sys.exit(main())
