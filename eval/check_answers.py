"""Checks the reading and the comparison of answers on a benchmark's own solutions.

    python -m eval.check_answers math500.jsonl gsm8k.jsonl

A file has one JSON object a line, with `answer` and, for a benchmark whose answers are bare, with
the worked `solution`. Where there is a solution, the answer read from it must be judged equal to
`answer`; where `answer` is a worked solution itself, as GSM8K's is, a number must be read from it.
Exit code 1 if fewer than `--least` of a file's records pass.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optscale_jax.answers import extract_answer, normalize_answer
from optscale_jax.equivalence import EquivalenceChecker
from optscale_jax.errors import InputError
from optscale_jax.readers.records import Record, read_records

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.check_answers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", help="JSON lines files")
    parser.add_argument("--least", type=float, default=0.995, help="share of records to pass")
    parser.add_argument("--seconds", type=float, default=5.0, help="time limit of a comparison")
    arguments = parser.parse_args(argv)
    try:
        with EquivalenceChecker(seconds=arguments.seconds, workers=1) as equal:
            shares = [_check(Path(file), equal) for file in arguments.files]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(min(shares) < arguments.least)


def _check(path: Path, equal: EquivalenceChecker) -> float:
    total, wrong = 0, []
    for record in read_records(path):
        total += 1
        fault = _fault(record, equal)
        if fault is not None:
            wrong.append(f"{record.place}: {fault}")
    for fault in wrong[:20]:
        print(f"  {fault}")
    print(f"{path.name}: {total - len(wrong)} of {total}")
    return 1 - len(wrong) / total


def _fault(record: Record, equal: EquivalenceChecker) -> str | None:
    answer = record.label("answer")
    if "solution" in record.value:
        found = extract_answer(record.value["solution"])
        if found is None or not equal(answer, found):
            return f"solution gives {found!r}, answer is {answer!r}"
        return None
    found = extract_answer(answer)
    if "####" not in answer:
        return None  # a bare answer, with nothing beside it to compare it with
    if found is None or not normalize_answer(found).lstrip("-").replace("/", "", 1).isdecimal():
        return f"no number in {answer[-40:]!r}"
    return None


if __name__ == "__main__":
    sys.exit(main())
