"""The directory of a live run: what was drawn stays drawn, whatever becomes of the process.

    config.yaml      the configuration, which a resumed run must share
    versions.json    packages and machine
    problems.jsonl   the problems as they were asked, as `read_problems` reads them
    drawn.jsonl      completions, the moment they are drawn; gone when the run has finished
    samples.jsonl    completions with their scores, in the project's own format (docs/formats.md)
    decisions.jsonl  one line a problem that is decided: what was returned and what it cost
    lock             held by the process that is at it

The three logs are append-only. Lines that come together are written together and synced once, from
a thread, so that a slow disk holds up no completion; nothing is reported as kept before it is on
disk. A line that a crash cut in two is recognised by its missing end and dropped.
"""

import asyncio
import dataclasses
import fcntl
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from optscale_jax.backends.base import Completion
from optscale_jax.problems import Problem
from optscale_jax.study.metrics import TokenLedger

__all__ = ["CONFIG", "DECISIONS", "PROBLEMS", "Decision", "Run", "RunError", "Sample"]

CONFIG, VERSIONS, PROBLEMS, LOCK = "config.yaml", "versions.json", "problems.jsonl", "lock"
DRAWN, SAMPLES, DECISIONS = "drawn.jsonl", "samples.jsonl", "decisions.jsonl"


class RunError(RuntimeError):
    """A run directory that cannot be used or written: one line with the remedy."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion with what is known of it.

    Attributes:
        problem_id: The problem.
        completion: The completion.
        score: The verifier's score, in [0, 1]; None without a verifier.
        answer: The final answer; None = none.
        answer_id: Equal within a problem where the answers are; -1 = none.
        gold_id: The gold answer's id; -1 = not known.
        steps: Step scores, if the verifier gives them.
        verifier_tokens: Tokens that the verifier read and wrote for it.
        note: What the verifier found unusual.
    """

    problem_id: str
    completion: Completion
    score: float | None
    answer: str | None
    answer_id: int
    gold_id: int
    steps: tuple[float, ...] = ()
    verifier_tokens: int = 0
    note: str | None = None

    @property
    def correct(self) -> bool | None:
        """Whether the answer is the gold one; None where that is not known."""
        return None if self.gold_id == -1 else self.answer_id == self.gold_id


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a policy did with one problem.

    Attributes:
        problem_id: The problem.
        num_samples: Completions that it decided on, the first ones in launch order.
        tokens: Their tokens; -1 = unknown.
        selected_index: The completion returned; -1 = none was eligible.
        stop_reason: A `StopReason`'s name in small letters.
        required: Samples that the policy wanted in all.
        params: The fitted law's parameters at the stop, by name; {} for policies that fit none.
        ledger: All tokens spent on the problem: those of completions beyond the `num_samples` too,
            that had ended when the policy stopped, and those aborted then.
        error: Why there is none, if the problem cannot be sampled or scored; its stop reason is
            "failed" then.
    """

    problem_id: str
    num_samples: int
    tokens: int
    selected_index: int
    stop_reason: str
    required: int
    params: dict[str, float]
    ledger: TokenLedger
    error: str | None = None


class Run:
    """A run directory, open for one process.

    Args:
        path: The directory, made if it does not exist.
        config: The configuration as YAML. It is kept, and a run that resumes must give the same.
        problems: The problems; likewise.
        volatile: Fields of the configuration that may differ all the same, because nothing that is
            drawn depends on them; dotted names, each with all fields below it.
        versions: Packages and machine, for the record.
        kind: "sequential" where each completion is written with the one before in view.

    Attributes:
        notes: What was found unusual on opening it, one line each.
        num_samples: Scored completions that are in it.

    Raises:
        RunError: If it belongs to another configuration or other problems (the message shows the
            difference), is in use by another process, holds a line that is not a record, or cannot
            be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: str,
        problems: Sequence[Problem],
        volatile: Sequence[str] = (),
        versions: Mapping[str, Any] | None = None,
        kind: str = "parallel",
    ):
        self.path = Path(path)
        self.kind = kind
        self.notes: list[str] = []
        self._logs: dict[str, _Log] = {}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path / LOCK)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}") from error
        try:
            self._begin(config, volatile, problems, versions or {})
            self._logs = {name: _Log(self.path / name) for name in (DRAWN, SAMPLES, DECISIONS)}
            self._read()
        except BaseException as error:
            for log in self._logs.values():
                log.close()
            os.close(self._lock)
            if isinstance(error, OSError):
                raise RunError(f"{error.filename or self.path}: {error.strerror}") from error
            raise
        self._failed: Exception | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._more = asyncio.Event()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is left and gives the directory free."""
        try:
            if self._failed is None:
                self._write()
        finally:
            for log in self._logs.values():
                log.close()
            os.close(self._lock)

    def finish(self) -> None:
        """Removes what only a run that may be resumed needs."""
        self._write()
        self._logs[DRAWN].clear()

    # What is there ------------------------------------------------------------------------------

    def samples(self, problem_id: str) -> list[Sample]:
        """The completions of a problem that were there, scored, when the run was opened.

        Args:
            problem_id: The problem.

        Returns:
            Them, in the order in which they came. Of a problem that is decided only the completion
            returned has its text.
        """
        return list(self._samples.get(problem_id, {}).values())

    def unscored(self, problem_id: str) -> list[Completion]:
        """The completions of a problem that were there when the run was opened, but not scored."""
        return list(self._drawn.get(problem_id, {}).values())

    def decision(self, problem_id: str) -> Decision | None:
        """What had been decided about a problem when the run was opened, if it was."""
        return self._decisions.get(problem_id)

    # What is added ------------------------------------------------------------------------------

    def add_drawn(self, problem_id: str, completion: Completion) -> None:
        """Keeps a completion that is about to be scored."""
        self._add(DRAWN, {"problem_id": problem_id, **_completion_fields(completion)})

    def add_sample(self, sample: Sample) -> None:
        """Keeps a completion with its score."""
        self.num_samples += 1
        self._add(SAMPLES, _sample_fields(sample, self.kind))

    def add_decision(self, decision: Decision) -> None:
        """Keeps a decision."""
        self._add(DECISIONS, _decision_fields(decision))

    async def durable(self) -> None:
        """Returns when everything added before the call is on disk.

        Raises:
            RunError: If it could not be written; the directory holds what was written before.
        """
        if self._failed is not None:
            raise self._failed
        kept = asyncio.get_running_loop().create_future()
        self._waiting.append(kept)
        self._more.set()
        await kept

    async def keep_writing(self) -> None:
        """Writes whatever is added, until it is cancelled; run it beside what adds.

        Raises:
            RunError: If something cannot be written.
        """
        # An event belongs to the loop that it is first waited for in.
        self._more = more = asyncio.Event()
        more.set()
        waiting: list[asyncio.Future[None]] = []
        try:
            while True:
                await more.wait()
                more.clear()
                waiting, self._waiting = self._waiting, []
                await self._write_beside(self._take())
                for kept in waiting:
                    if not kept.done():
                        kept.set_result(None)
        except Exception as error:
            self._failed = error
            for kept in (*waiting, *self._waiting):
                if not kept.done():
                    kept.set_exception(error)
                    kept.exception()  # raised here too, so it is not lost if nobody waits
            raise

    async def _write_beside(self, blocks: Mapping[str, bytes]) -> None:
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, blocks))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # A write that is under way cannot be called back, and `close` must not overtake it.
            await asyncio.wait([writing])
            raise

    def _add(self, name: str, fields: Mapping[str, Any]) -> None:
        # "replace": a server's JSON can hold half of a surrogate pair, which UTF-8 cannot.
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        self._logs[name].waiting.append(line.encode("utf-8", "replace") + b"\n")
        self._more.set()

    def _take(self) -> dict[str, bytes]:
        blocks = {}
        for name, log in self._logs.items():
            blocks[name] = b"".join(log.waiting)
            log.waiting.clear()
        return blocks

    def _write(self, blocks: Mapping[str, bytes] | None = None) -> None:
        # In this order, so that no decision is on disk before its samples.
        for name, block in (self._take() if blocks is None else blocks).items():
            try:
                self._logs[name].append(block)
            except OSError as error:
                raise RunError(
                    f"{self.path / name}: cannot be written ({error.strerror}); what was drawn "
                    "until then is kept: make room, and run the same command to go on"
                ) from error

    # Opening ------------------------------------------------------------------------------------

    def _begin(
        self,
        config: str,
        volatile: Sequence[str],
        problems: Sequence[Problem],
        versions: Mapping[str, Any],
    ) -> None:
        asked = "".join(
            json.dumps(
                {"id": problem.id, "problem": problem.text, "answer": problem.answer},
                ensure_ascii=False,
            )
            + "\n"
            for problem in problems
        )
        differences = {
            CONFIG: lambda before: _config_difference(before, config, volatile),
            PROBLEMS: lambda before: _line_difference(before, asked),
        }
        for name, text in ((CONFIG, config), (PROBLEMS, asked)):
            file = self.path / name
            if file.exists():
                difference = differences[name](file.read_text(encoding="utf-8"))
                if difference:
                    raise RunError(
                        f"{self.path}: holds another run, whose {name} differs: {difference}; go "
                        "on with what it has, or give another folder"
                    )
            elif (self.path / SAMPLES).exists():
                raise RunError(
                    f"{self.path}: has {SAMPLES} but no {name}, so what it belongs to cannot be "
                    "told; give another folder"
                )
            else:
                _write_whole(file, text)
        file = self.path / VERSIONS
        text = json.dumps(versions, indent=1) + "\n"
        if not file.exists():
            _write_whole(file, text)
        elif difference := _line_difference(file.read_text(encoding="utf-8"), text):
            self.notes.append(f"{file}: the run was begun with other versions: {difference}")

    def _read(self) -> None:
        self._samples: dict[str, dict[int, Sample]] = {}
        self._drawn: dict[str, dict[int, Completion]] = {}
        self._decisions: dict[str, Decision] = {}
        # Decisions first: what they were about need not be held in memory.
        restore = {
            DECISIONS: self._add_old_decision,
            SAMPLES: self._add_old,
            DRAWN: self._add_drawn,
        }
        for name, restored in restore.items():
            log = self._logs[name]
            if log.torn:
                self.notes.append(
                    f"{log.path}: dropped a last line that was cut short, of {log.torn} bytes"
                )
            with open(log.path, "rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        restored(json.loads(line))
                    except (ValueError, KeyError, TypeError) as error:
                        raise RunError(
                            f"{log.path}: line {number}: not a record of a run ({error!r}); mend "
                            "or remove that line"
                        ) from error
        self.num_samples = sum(map(len, self._samples.values()))

    def _add_old_decision(self, fields: dict[str, Any]) -> None:
        decision = _decision(fields)
        self._decisions[decision.problem_id] = decision

    def _add_old(self, fields: dict[str, Any]) -> None:
        sample = _sample(fields)
        index = sample.completion.index
        of_problem = self._samples.setdefault(sample.problem_id, {})
        if index in of_problem:
            raise ValueError(f"completion {index} of {sample.problem_id!r} is there already")
        decision = self._decisions.get(sample.problem_id)
        if decision is not None and index != decision.selected_index:
            sample = dataclasses.replace(
                sample, completion=dataclasses.replace(sample.completion, text="")
            )
        of_problem[index] = sample

    def _add_drawn(self, fields: dict[str, Any]) -> None:
        problem_id, index = fields["problem_id"], fields["index"]
        if problem_id in self._decisions or index in self._samples.get(problem_id, {}):
            return
        self._drawn.setdefault(problem_id, {})[index] = _completion(fields)


class _Log:
    """An append-only file whose every line is whole."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[bytes] = []
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if is_new:
            _sync_folder(path.parent)
        size = os.fstat(self._file).st_size
        self._end = self._end_of_whole_lines(size)
        self.torn = size - self._end
        """Bytes of a last line that a crash cut short."""
        if self.torn:
            os.ftruncate(self._file, self._end)

    def _end_of_whole_lines(self, size: int) -> int:
        end = size
        while end > 0:
            start = max(0, end - (1 << 16))
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def append(self, block: bytes) -> None:
        if not block:
            return
        try:
            view = memoryview(block)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            # Whoever reads the file next finds whole lines only, and as many of them as had room.
            self._end = self._end_of_whole_lines(os.fstat(self._file).st_size)
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(block)

    def clear(self) -> None:
        os.ftruncate(self._file, 0)
        self._end = 0
        self.path.unlink()

    def close(self) -> None:
        os.close(self._file)


# Records ------------------------------------------------------------------------------------------


def _completion_fields(completion: Completion) -> dict[str, Any]:
    return {
        "index": completion.index,
        # An unknown length is left out, as in every file of the format.
        **({"tokens": completion.tokens} if completion.tokens >= 0 else {}),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion": completion.text,
    }


def _completion(fields: Mapping[str, Any]) -> Completion:
    return Completion(
        index=fields["index"],
        text=fields["completion"],
        tokens=fields.get("tokens", -1),
        finish_reason=fields["finish_reason"],
        prompt_tokens=fields["prompt_tokens"],
    )


def _sample_fields(sample: Sample, kind: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"problem_id": sample.problem_id}
    if kind != "parallel":
        fields["kind"] = kind
    completion = _completion_fields(sample.completion)
    fields["index"] = completion.pop("index")
    if sample.score is not None:
        fields["score"] = sample.score
    fields |= {"answer_id": sample.answer_id, "gold_id": sample.gold_id, "answer": sample.answer}
    if sample.steps:
        fields["steps"] = list(sample.steps)
    if sample.verifier_tokens:
        fields["verifier_tokens"] = sample.verifier_tokens
    if sample.note is not None:
        fields["note"] = sample.note
    return fields | completion


def _sample(fields: Mapping[str, Any]) -> Sample:
    return Sample(
        problem_id=fields["problem_id"],
        completion=_completion(fields),
        score=fields.get("score"),
        answer=fields["answer"],
        answer_id=fields["answer_id"],
        gold_id=fields["gold_id"],
        steps=tuple(fields.get("steps", ())),
        verifier_tokens=fields.get("verifier_tokens", 0),
        note=fields.get("note"),
    )


def _decision_fields(decision: Decision) -> dict[str, Any]:
    fields = dataclasses.asdict(decision)
    for part in (fields, fields["ledger"]):
        for name, value in part.items():
            if isinstance(value, float) and math.isnan(value):
                part[name] = None
    return fields


def _decision(fields: dict[str, Any]) -> Decision:
    def known(value: Any) -> Any:
        return math.nan if value is None else value

    ledger = TokenLedger(**{name: known(value) for name, value in fields["ledger"].items()})
    if "params" not in fields:  # as it was written when the law was always the truncated normal
        loc, scale = fields.pop("loc"), fields.pop("scale")
        fields["params"] = {} if loc is None else {"loc": loc, "scale": scale}
    return Decision(**{**fields, "ledger": ledger})


# Files --------------------------------------------------------------------------------------------


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Given free by the system when the process ends, however it does.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(file, 32, 0).decode(errors="replace").strip()
        os.close(file)
        raise RunError(
            f"{path.parent}: process {owner or '?'} is at this run; wait for it, or give another "
            "folder"
        ) from error
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _config_difference(before: str, now: str, volatile: Sequence[str]) -> str:
    """The fields that differ, as "sampler.temperature is 0.7, now 1.0"; "" if none does."""
    there, here = (dict(_flat(yaml.safe_load(text))) for text in (before, now))
    changes = [
        f"{name} is {_short(there.get(name))}, now {_short(here.get(name))}"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
        and not any(f"{name}.".startswith(f"{field}.") for field in volatile)
    ]
    return _first_of(changes)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _line_difference(before: str, now: str) -> str:
    there, here = before.splitlines(), now.splitlines()
    changes = [
        f"line {number} is {_short(old)}, now {_short(new)}"
        for number, (old, new) in enumerate(itertools.zip_longest(there, here), 1)
        if old != new
    ]
    return _first_of(changes)


def _first_of(changes: list[str], most: int = 4) -> str:
    more = len(changes) - most
    return ", ".join(changes[:most]) + (f", and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    words = "missing" if value is None else str(value).strip()
    return words if len(words) <= 80 else words[:77] + "..."
