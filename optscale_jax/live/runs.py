"""The directory of a live run: what was drawn stays drawn, whatever becomes of the process.

    config.yaml      the configuration, which a resumed run must share
    versions.json    packages and machine
    problems.jsonl   the problems as they were asked, as `read_problems` reads them
    drawn.jsonl      completions, as soon as they are drawn, with a budget their launches, and what
                     was spent in vain when the run was interrupted; gone when it has finished
    samples.jsonl    completions with their scores, in the project's own format (docs/formats.md)
    decisions.jsonl  one line a problem that is decided: what was returned and what it cost
    shards/NN        the logs of one shard of a run on Ray (`live.shards`), which go into the run's
                     own when it has finished
    lock             held by the process that is at it

The three logs are append-only. Lines that come together are written together and synced once, from
a thread, so that a slow disk holds up no completion: decisions, which are waited for, at once, and
completions at the latest a twentieth of a second after they came. Nothing is reported as kept
before it is on disk. A line that a crash cut in two is recognised by its missing end and dropped.
Whatever else is damaged is named, all of it at once, and `repair` sets it aside: NAME.damaged has
what was taken out of NAME, and what is missing then is drawn again.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from optscale_jax.errors import RunError
from optscale_jax.files import atomic_write, end_of_whole_lines, sync_folder
from optscale_jax.records import (
    Completion,
    Decision,
    FinishReason,
    Problem,
    Sample,
    TokenLedger,
)

__all__ = ["CONFIG", "DECISIONS", "PROBLEMS", "Earlier", "Part", "Run", "is_at_work", "read_run"]

CONFIG, VERSIONS, PROBLEMS, LOCK = "config.yaml", "versions.json", "problems.jsonl", "lock"
DRAWN, SAMPLES, DECISIONS = "drawn.jsonl", "samples.jsonl", "decisions.jsonl"
SHARDS = "shards"

# How long lines that nobody waits for may wait for others to be written with.
_TOGETHER_SECONDS = 0.05
# How long a process that was killed may take to be gone.
_GONE_SECONDS = 60.0


class Earlier(NamedTuple):
    """What earlier processes have left of a problem that is not decided."""

    samples: list[Sample]
    unscored: list[Completion]
    spent: TokenLedger


# Made once: `json.dumps` makes one a line.
_encoded = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


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
        defaults: A configuration as YAML; a field that the run's own lacks, because it was begun
            before there was one, is as it is here.
        repair: Sets aside what is damaged, instead of refusing it.

    Attributes:
        notes: What was found unusual on opening it, one line each.

    Raises:
        RunError: If it belongs to another configuration or other problems (the message shows the
            difference), is in use by another process, is damaged, or cannot be written.
    """

    _patience = 0.0  # in seconds, with another process that is at it

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: str,
        problems: Sequence[Problem],
        volatile: Sequence[str] = (),
        versions: Mapping[str, Any] | None = None,
        kind: str = "parallel",
        defaults: str = "",
        repair: bool = False,
    ):
        self.path = Path(path)
        self.kind = kind
        self.notes: list[str] = []
        self._logs: dict[str, _Log] = {}
        self._begun: list[_Growing] = []
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path / LOCK, self._patience)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot hold a run ({error.strerror}); give another folder"
            ) from error
        try:
            self._begin(config, volatile, problems, versions or {}, defaults, repair)
            self._logs = {name: _Log(self.path / name) for name in (DRAWN, SAMPLES, DECISIONS)}
            for part in _parts(self.path):
                # A shard of a driver that was killed is killed by Ray, which takes a moment.
                os.close(_lock(part / LOCK, _GONE_SECONDS))
                for name in (DRAWN, SAMPLES, DECISIONS):
                    self._logs[f"{SHARDS}/{part.name}/{name}"] = _Log(part / name)
            self.notes += [log.torn for log in self._logs.values() if log.torn]
            damage = self._read()
            if damage and repair:
                self._set_aside(damage)
                damage = self._read()
            if damage:
                raise RunError(_damaged(self.path, damage))
        except BaseException as error:
            for log in self._logs.values():
                log.close()
            os.close(self._lock)
            if isinstance(error, OSError):
                raise RunError(f"{error.filename or self.path}: {error.strerror}") from error
            raise
        self._failed: Exception | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._more, self._awaited = asyncio.Event(), asyncio.Event()

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
        self._gather()
        self._logs[DRAWN].clear()

    def _gather(self) -> None:
        """Has the run's own logs hold what its shards have kept."""
        parts = _parts(self.path)
        for name in (SAMPLES, DECISIONS) if parts else ():
            seen = set()
            with atomic_write(self.path / name, binary=True) as whole:
                for place in (self.path, *parts):
                    _Log(place / name).close()  # drops a line that a crash cut in two
                    with open(place / name, "rb") as file:
                        for line in file:
                            fields = json.loads(line)
                            one = fields["problem_id"], fields.get("index")
                            # In two logs where this was cut off before the shards' own went.
                            if one not in seen:
                                seen.add(one)
                                whole.write(line)
            self._logs[name].close()
            self._logs[name] = _Log(self.path / name)
        self._begun.clear()
        for name in [name for name in self._logs if name.startswith(SHARDS)]:
            self._logs.pop(name).close()
        shutil.rmtree(self.path / SHARDS, ignore_errors=True)

    def begin_part(self) -> Path:
        """A directory for a `Part` of this run that there is none in yet."""
        last = max((int(part.name) for part in _parts(self.path)), default=-1)
        part = self.path / SHARDS / f"{last + 1:02}"
        part.mkdir(parents=True)
        self._begun.append(_Growing(part / SAMPLES))
        return part

    # What is there ------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """How many scored completions are on disk."""
        logs = [log for name, log in self._logs.items() if name.endswith(SAMPLES)]
        return sum(log.lines for log in (*logs, *self._begun))

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

    def launches(self, problem_id: str) -> Sequence[int]:
        """Each completion that was about to be drawn for a budget, as often as it was."""
        return self._launches.get(problem_id, [])

    def spent(self, problem_id: str) -> TokenLedger:
        """What earlier processes had spent on a problem without a completion to show for it."""
        return self._spent.get(problem_id, TokenLedger())

    def earlier(self, problem_id: str) -> Earlier | None:
        """All of that for whoever goes on with a problem in a `Part`; None if there is nothing."""
        found = self.samples(problem_id), self.unscored(problem_id), self.spent(problem_id)
        return Earlier(*found) if found[0] or found[1] or found[2].total else None

    def decision(self, problem_id: str) -> Decision | None:
        """What had been decided about a problem when the run was opened, if it was."""
        return self._decisions.get(problem_id)

    # What is added ------------------------------------------------------------------------------

    def add_launch(self, problem_id: str, index: int) -> None:
        """Keeps that a completion is about to be drawn, and may cost something whatever follows."""
        self._add(DRAWN, {"problem_id": problem_id, "launched": index})

    def add_spent(self, problem_id: str, spent: TokenLedger) -> None:
        """Keeps what was spent on a problem that is not decided, and has left nothing else."""
        self._add(DRAWN, {"problem_id": problem_id, "spent": _nulled(dataclasses.asdict(spent))})

    def add_drawn(self, problem_id: str, completion: Completion) -> None:
        """Keeps a completion that is about to be scored."""
        self._add(DRAWN, {"problem_id": problem_id, **_completion_fields(completion)})

    def add_sample(self, sample: Sample) -> None:
        """Keeps a completion with its score."""
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
        self._awaited.set()
        await kept

    async def keep_writing(self) -> None:
        """Writes whatever is added, until it is cancelled; run it beside what adds.

        Raises:
            RunError: If something cannot be written.
        """
        # An event belongs to the loop that it is first waited for in.
        self._more = more = asyncio.Event()
        self._awaited = awaited = asyncio.Event()
        more.set()
        waiting: list[asyncio.Future[None]] = []
        try:
            while True:
                await more.wait()
                if not self._waiting:
                    # Not `wait_for`, which in Python 3.11 can lose a cancellation.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_TOGETHER_SECONDS):
                            await awaited.wait()
                more.clear()
                awaited.clear()
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
        self._logs[name].waiting.append(_encoded(fields).encode("utf-8", "replace") + b"\n")
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
                    f"{self.path / name}: cannot be written ({error.strerror}); make room"
                ) from error

    # Opening ------------------------------------------------------------------------------------

    def _begin(
        self,
        config: str,
        volatile: Sequence[str],
        problems: Sequence[Problem],
        versions: Mapping[str, Any],
        defaults: str,
        repair: bool,
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
            CONFIG: lambda before: _config_difference(before, config, volatile, defaults),
            PROBLEMS: lambda before: _line_difference(before, asked),
        }
        for name, text in ((CONFIG, config), (PROBLEMS, asked)):
            file = self.path / name
            if not file.exists() and not (self.path / SAMPLES).exists():
                _write_whole(file, text)
                continue
            try:
                difference = differences[name](file.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError, RecursionError, yaml.YAMLError) as error:
                if not repair:
                    raise RunError(_damaged(self.path, {name: {0: _reason(error)}})) from error
                if file.exists():
                    os.replace(file, file.with_name(f"{name}.damaged"))
                _write_whole(file, text)
                self.notes.append(f"{file}: was damaged, and is now as this command gives it")
                continue
            if difference:
                raise RunError(
                    f"{self.path}: holds another run, whose {name} differs: {difference}; go "
                    "on with what it has, or give another folder"
                )
        file = self.path / VERSIONS
        text = json.dumps(versions, indent=1) + "\n"
        if not file.exists():
            _write_whole(file, text)
        elif difference := _line_difference(file.read_text("utf-8", errors="replace"), text):
            self.notes.append(f"{file}: the run was begun with other versions: {difference}")

    def _read(self) -> "_Damage":
        """Reads the logs; returns which lines cannot be used, and why."""
        self._samples: dict[str, dict[int, Sample]] = {}
        self._drawn: dict[str, dict[int, Completion]] = {}
        self._launches: dict[str, list[int]] = {}
        self._spent: dict[str, TokenLedger] = {}
        self._decisions: dict[str, Decision] = {}
        # Decisions first: what they were about need not be held in memory.
        restore = {
            DECISIONS: self._add_old_decision,
            SAMPLES: self._add_old,
            DRAWN: self._add_drawn,
        }
        damage: _Damage = {}
        decided: dict[str, tuple[str, int]] = {}
        for kind, restored in restore.items():
            for name, log in self._logs.items():
                if not name.endswith(kind):
                    continue
                with open(log.path, "rb") as file:
                    for number, line in enumerate(file, 1):
                        try:
                            fields = json.loads(line)
                            if not isinstance(fields, dict):
                                raise ValueError("not an object")
                            problem_id = restored(fields, name == kind)
                        except (ValueError, KeyError, TypeError, RecursionError) as error:
                            damage.setdefault(name, {})[number] = _reason(error)
                        else:
                            if kind == DECISIONS:
                                decided[problem_id] = name, number
        for problem_id, (name, number) in decided.items():
            if missing := self._missing(problem_id):
                damage.setdefault(name, {})[number] = missing
        return damage

    def _missing(self, problem_id: str) -> str:
        """What a decision rests on and is not there, in words; "" for nothing."""
        there = self._samples.get(problem_id, {})
        needed = range(self._decisions[problem_id].num_samples)
        missing = next((index for index in needed if index not in there), None)
        return (
            ""
            if missing is None
            else f"completion {missing} of problem {problem_id!r} is not there"
        )

    def _set_aside(self, damage: "_Damage") -> None:
        for name, lines in damage.items():
            log = self._logs[name]
            aside = log.path.with_name(f"{log.path.name}.damaged")
            with open(log.path, "rb") as file, open(aside, "ab") as bad:
                good = []
                for number, line in enumerate(file, 1):
                    (bad.write if number in lines else good.append)(line)
                bad.flush()
                os.fsync(bad.fileno())
            log.close()
            with atomic_write(log.path, binary=True) as file:
                file.writelines(good)
            self._logs[name] = _Log(log.path)
            self.notes.append(f"{aside}: has {len(lines)} lines of {name} that were damaged")

    def _add_old_decision(self, fields: dict[str, Any], own: bool) -> str:
        decision = _decision(fields)
        self._decisions[decision.problem_id] = decision
        return decision.problem_id

    def _add_old(self, fields: dict[str, Any], own: bool) -> None:
        sample = _sample(fields)
        index = sample.completion.index
        of_problem = self._samples.setdefault(sample.problem_id, {})
        if index in of_problem:
            if not own:
                return  # a shard's, which `finish` had gathered when it was cut off
            raise ValueError(f"completion {index} of {sample.problem_id!r} is there already")
        decision = self._decisions.get(sample.problem_id)
        if decision is not None and index != decision.selected_index:
            sample = dataclasses.replace(
                sample, completion=dataclasses.replace(sample.completion, text="")
            )
        of_problem[index] = sample

    def _add_drawn(self, fields: dict[str, Any], own: bool) -> None:
        problem_id = _known(fields, "problem_id", str)
        if "launched" in fields:
            self._launches.setdefault(problem_id, []).append(_count(fields, "launched"))
            return
        if "spent" in fields:
            self._spent[problem_id] = self.spent(problem_id) + _ledger(fields["spent"])
            return
        completion = _completion(fields)
        if problem_id in self._decisions or completion.index in self._samples.get(problem_id, {}):
            return
        self._drawn.setdefault(problem_id, {})[completion.index] = completion


class Part(Run):
    """What one shard of a run keeps, in a directory that only this shard has ever written to.

    Args:
        path: The directory, of `Run.begin_part`.
        kind: The run's.

    Raises:
        RunError: As of `Run`; if another process is at it still after a minute.
    """

    _patience = _GONE_SECONDS

    def __init__(self, path: str | os.PathLike[str], *, kind: str):
        super().__init__(path, config="", problems=(), kind=kind)

    def _begin(self, *asked: Any) -> None:
        """Its run has the configuration and the problems."""

    def _missing(self, problem_id: str) -> str:
        return ""  # it may be in another part

    def take(self, problem_id: str, earlier: Earlier | None, *, with_own: bool = False) -> None:
        """Takes over what earlier processes have left of a problem, once in this one's life.

        Args:
            problem_id: The problem.
            earlier: What they have left; None for nothing.
            with_own: Whether that has what this part holds, too.
        """
        if earlier is None:
            return
        samples = {one.completion.index: one for one in earlier.samples}
        drawn = {one.index: one for one in earlier.unscored}
        spent = earlier.spent
        if not with_own:
            samples |= self._samples.get(problem_id, {})
            drawn |= self._drawn.get(problem_id, {})
            spent = self.spent(problem_id) + spent
        self._samples[problem_id] = samples
        self._drawn[problem_id] = {i: one for i, one in drawn.items() if i not in samples}
        self._spent[problem_id] = spent


def read_run(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Decision], dict[str, list[Sample]]]:
    """What a run's directory holds, also one that another process is at; nothing is changed.

    Args:
        path: The directory.

    Returns:
        The decisions, and for each problem with completions what its decision rests on, in launch
        order: of one that is not decided yet, those up to the first that is missing.

    Raises:
        RunError: If it is no run's directory, or holds what is not a record of a run.
    """
    path, found = Path(path), {}
    for name, parse in ((DECISIONS, _decision), (SAMPLES, _sample)):
        records = found[name] = []
        for place in (path, *_parts(path)):
            try:
                lines = (place / name).read_bytes().splitlines(keepends=True)
            except OSError as error:
                if place != path:
                    continue  # just begun, or gathered
                raise RunError(
                    f"{path / name}: {error.strerror}; give the directory of a live run"
                ) from error
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break  # cut short
                try:
                    records.append(parse(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise RunError(_damaged(place, {name: {number: _reason(error)}})) from error
    decisions = {decision.problem_id: decision for decision in found[DECISIONS]}
    drawn: dict[str, dict[int, Sample]] = {}
    for sample in found[SAMPLES]:
        drawn.setdefault(sample.problem_id, {}).setdefault(sample.completion.index, sample)
    samples = {}
    for name, by_index in drawn.items():
        whole = itertools.takewhile(by_index.__contains__, itertools.count())
        count = decisions[name].num_samples if name in decisions else None
        samples[name] = [by_index[index] for index in itertools.islice(whole, count)]
    return decisions, samples


def _parts(path: Path) -> list[Path]:
    """The directories of a run's shards, in the order in which they were begun."""
    return sorted((path / SHARDS).glob("[0-9]*"), key=lambda part: int(part.name))


def is_at_work(path: Path) -> bool:
    """Whether a process has a directory of a run open, on whatever machine shares it."""
    try:
        os.close(_lock(path / LOCK))
    except RunError:
        return True
    return False


class _Growing:
    """A log that another process appends to."""

    def __init__(self, path: Path):
        self._path, self._end, self._lines = path, 0, 0

    @property
    def lines(self) -> int:
        """How many whole lines it has by now."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._end)
            more = file.read()
            self._end += more.rfind(b"\n") + 1
            self._lines += more.count(b"\n")
        return self._lines


class _Log:
    """An append-only file whose every line is whole."""

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[bytes] = []
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if is_new:
            sync_folder(path.parent)
        size = os.fstat(self._file).st_size
        self._end = end_of_whole_lines(self._file, size)
        self.torn = ""
        """What is to be said of a last line that a crash cut short."""
        if torn := size - self._end:
            os.ftruncate(self._file, self._end)
            self.torn = f"{path}: dropped a last line that was cut short, of {torn} bytes"
        with open(path, "rb") as file:
            self.lines = sum(1 for _ in file)

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
            before, size = self._end, os.fstat(self._file).st_size
            self._end = end_of_whole_lines(self._file, size)
            os.ftruncate(self._file, self._end)
            self.lines += block[: self._end - before].count(b"\n")
            raise
        self._end += len(block)
        self.lines += block.count(b"\n")

    def clear(self) -> None:
        os.ftruncate(self._file, 0)
        self._end = self.lines = 0
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
        **({"redrawn": completion.redrawn} if completion.redrawn else {}),
        **({} if (mean := completion.mean_logprob) is None else {"mean_logprob": mean}),
        **({} if (own := completion.signals) is None else {"signals": _nulled(own)}),
        "completion": completion.text,
    }


def _nulled(values: Mapping[str, Any]) -> dict[str, Any]:
    """With null for NaN, which JSON has no word for."""
    return {name: None if value != value else value for name, value in values.items()}


def _completion(fields: Mapping[str, Any]) -> Completion:
    return Completion(
        index=_count(fields, "index"),
        text=_known(fields, "completion", str),
        tokens=_count(fields, "tokens", least=-1, default=-1),
        finish_reason=_one_of(fields, "finish_reason", get_args(FinishReason)),
        prompt_tokens=_count(fields, "prompt_tokens"),
        redrawn=_count(fields, "redrawn", default=0),
        mean_logprob=_known(fields, "mean_logprob", float, type(None), default=None),
        signals=_signals(fields),
    )


def _signals(fields: Mapping[str, Any]) -> dict[str, float] | None:
    held = _known(fields, "signals", dict, type(None), default=None)
    if held is None:
        return None
    return {name: _not_null(_known(held, name, float, type(None))) for name in held}


def _not_null(value: Any) -> Any:
    return math.nan if value is None else value


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
    if sample.score is not None:
        fields["verifier_tokens"] = sample.verifier_tokens
    if sample.note is not None:
        fields["note"] = sample.note
    return fields | completion


def _sample(fields: Mapping[str, Any]) -> Sample:
    steps = _known(fields, "steps", list, default=[])
    scores = {f"steps[{place}]": value for place, value in enumerate(steps)}
    return Sample(
        problem_id=_known(fields, "problem_id", str),
        completion=_completion(fields),
        score=_unit(fields, "score") if fields.get("score") is not None else None,
        answer=_known(fields, "answer", str, type(None)),
        answer_id=_count(fields, "answer_id", least=-1),
        gold_id=_count(fields, "gold_id", least=-1),
        steps=tuple(_unit(scores, name) for name in scores),
        verifier_tokens=_count(fields, "verifier_tokens", least=-1, default=0),
        note=_known(fields, "note", str, type(None), default=None),
    )


def _decision_fields(decision: Decision) -> dict[str, Any]:
    fields = dataclasses.asdict(decision)
    return _nulled(fields | {"ledger": _nulled(fields["ledger"])})


def _ledger(fields: Any) -> TokenLedger:
    if not isinstance(fields, dict):
        raise ValueError(f"a ledger is {_short(repr(fields))}")
    entries = [each.name for each in dataclasses.fields(TokenLedger)]
    spent = {name: _known(fields, name, int, float, type(None)) for name in entries}
    return TokenLedger(**{name: _not_null(value) for name, value in spent.items()})


def _decision(fields: dict[str, Any]) -> Decision:
    ledger = _ledger(_known(fields, "ledger", dict))
    if "params" not in fields:  # as it was written when the law was always the truncated normal
        loc, scale = fields.pop("loc"), fields.pop("scale")
        fields["params"] = {} if loc is None else {"loc": loc, "scale": scale}
    _known(fields, "problem_id", str)
    drawn = _count(fields, "num_samples")
    _count(fields, "tokens", least=-1)
    _count(fields, "selected_index", least=-1, below=drawn)
    return Decision(**{**fields, "ledger": ledger})


_REQUIRED = object()


def _known(fields: Mapping[str, Any], name: str, *types: type, default: Any = _REQUIRED) -> Any:
    """A field's value, which must be of one of the types."""
    value = fields[name] if default is _REQUIRED else fields.get(name, default)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{name} is {_short(repr(value))}")
    return value


def _count(
    fields: Mapping[str, Any],
    name: str,
    *,
    least: int = 0,
    below: int = 1 << 31,
    default: Any = _REQUIRED,
) -> int:
    value = _known(fields, name, int, default=default)
    if not least <= value < below:
        raise ValueError(f"{name} is {_short(repr(value))}, not in [{least}, {below})")
    return value


def _unit(fields: Mapping[str, Any], name: str) -> float | int:
    value = _known(fields, name, float, int)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {_short(repr(value))}, not in [0, 1]")
    return value


def _one_of(fields: Mapping[str, Any], name: str, choices: Sequence[Any]) -> Any:
    if fields[name] not in choices:
        raise ValueError(f"{name} is {_short(repr(fields[name]))}, none of {', '.join(choices)}")
    return fields[name]


_Damage = dict[str, dict[int, str]]  # of each file, the lines that cannot be used, and why


def _damaged(path: Path, damage: _Damage) -> str:
    """One line about all that is damaged: the first of it, how much more, and the remedy."""
    places = [(name, line, why) for name, lines in damage.items() for line, why in lines.items()]
    name, line, why = places[0]
    place = f"line {line}: not a record of a run" if line else "cannot be read"
    more = f", and {len(places) - 1} lines more" if len(places) > 1 else ""
    return (
        f"{path / name}: {place} ({why}){more}; add --repair true to set aside what is damaged and "
        "draw again what is missing then"
    )


def _reason(error: BaseException) -> str:
    words = {KeyError: f"no field {error}", RecursionError: "nested too deeply"}
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    if isinstance(error, OSError):
        return str(error.strerror)
    return " ".join(words.get(type(error), str(error)).split())[:200]


# Files --------------------------------------------------------------------------------------------


def _lock(path: Path, seconds: float = 0.0) -> int:
    """Takes the lock of a directory, for which it waits so long."""
    file, until = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), time.monotonic() + seconds
    while True:
        try:
            # Given free by the system when the process ends, however it does.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            owner = os.pread(file, 32, 0).decode(errors="replace").strip()
            os.close(file)
            raise RunError(
                f"{path.parent}: process {owner or '?'} is at this run; wait for it, or give "
                "another folder"
            ) from error
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def _write_whole(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def _config_difference(before: str, now: str, volatile: Sequence[str], defaults: str) -> str:
    """The fields that differ, as "sampler.temperature is 0.7, now 1.0"; "" if none does."""
    texts = [yaml.safe_load(text) for text in (before, now, defaults)]
    if before and not isinstance(texts[0], dict):
        raise ValueError("not a configuration")
    there, here, default = (dict(_flat(text or {})) for text in texts)
    there = {**{name: value for name, value in default.items() if name in here}, **there}
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
