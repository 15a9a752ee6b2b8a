"""Pool directories: what is written comes back, in blocks too, and what is damaged is named."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import Pool, synthetic_pool
from optscale_jax.calibration import Origin
from optscale_jax.errors import InputError, PoolError
from optscale_jax.pool_directory import MANIFEST, PoolDirectory, PoolWriter
from optscale_jax.readers import open_pool, read_pool
from optscale_jax.study.pools import PoolSource
from tests.test_pool import assert_equal, pools

POOL = synthetic_pool(jax.random.key(0), num_problems=10, num_samples=4)


def written(path: Path, pool: Pool = POOL, *, size: int = 3, part_size: int = 4) -> PoolDirectory:
    with PoolWriter(path, part_size=part_size) as writer:
        for block in pool.blocks(size):
            writer.add(block)
    return PoolDirectory(path)


@settings(max_examples=25)
@given(pool=pools(), size=st.integers(1, 5), part_size=st.integers(1, 5), block=st.integers(1, 5))
def test_what_is_written_comes_back(tmp_path_factory, pool, size, part_size, block):
    path = tmp_path_factory.mktemp("pool") / "directory"
    found = written(path, pool, size=size, part_size=part_size)
    assert_equal(found.load(), pool)
    for own, other in zip(found.blocks(block), pool.blocks(block), strict=True):
        assert_equal(own, with_short_names(other))
    for name in ("num_problems", "num_samples", "kind", "origin", "has_scores", "has_answers"):
        assert getattr(found, name) == getattr(pool, name), name
    assert found.has_tokens == pool.has_tokens
    assert found.num_unanswered == pool.num_unanswered
    assert set(found.signal_names) == set(pool.signal_names)
    assert found.problem_ids.tolist() == pool.problem_ids.tolist()
    assert found.samples_per_problem.tolist() == pool.samples_per_problem.tolist()
    some = np.flatnonzero(np.arange(pool.num_problems) % 2 == 0)
    assert_equal(found.subset(some), with_short_names(pool.subset(some)))


def with_short_names(pool: Pool) -> Pool:
    """The pool with room for the longest of its own names, and not of those it was taken from."""
    return dataclasses.replace(pool, problem_ids=np.array(pool.problem_ids.tolist()))


def test_it_is_read_wherever_a_pool_is(tmp_path):
    made_by = Origin("a verifier", "min", "a model")
    written(tmp_path / "pool", POOL.with_origin(made_by))
    assert_equal(read_pool(tmp_path / "pool"), POOL)
    assert isinstance(open_pool(tmp_path / "pool"), PoolDirectory)
    source = PoolSource(str(tmp_path / "pool"))
    assert source.load().origin == made_by
    assert source.name == "pool"
    assert source.with_checksum().what_changed() is None
    with pytest.raises(InputError, match="no option 'clip' \\(it has none\\)"):
        read_pool(tmp_path / "pool", clip=True)


def test_what_some_problems_lack_is_not_known_of_them(tmp_path):
    first, last = POOL.blocks(5)
    signal = np.full(first.mask.shape, 0.5, np.float32)
    with PoolWriter(tmp_path / "pool", part_size=4) as writer:
        writer.add(dataclasses.replace(first, signals={"judge": signal}))
        writer.add(dataclasses.replace(last, correct=None, gold=None))
    found = read_pool(tmp_path / "pool")
    assert found.correct is None
    assert found.gold.tolist() == [0] * 5 + [-1] * 5
    np.testing.assert_array_equal(found.signals["judge"][:5], signal)
    assert np.isnan(found.signals["judge"][5:]).all()


def test_problems_of_one_pool_are_of_one_kind_and_each_is_there_once(tmp_path):
    other = POOL.subset([7])
    for wrong, says in (
        (POOL.subset([2]), "problem 'synthetic/2' is given twice"),
        (dataclasses.replace(other, scores=None), "has_scores is False from problem 'synthetic/7'"),
        (dataclasses.replace(other, kind="sequential"), "kind is sequential"),
        (other.with_origin(Origin("another")), "origin is {'verifier': 'another'"),
    ):
        with pytest.raises(PoolError, match=says):
            written_of(tmp_path / "pool", POOL.subset([1, 2]), wrong)
        assert not (tmp_path / "pool").exists()


def written_of(path: Path, *parts: Pool) -> None:
    with PoolWriter(path) as writer:
        for part in parts:
            writer.add(part)


def test_nothing_that_is_there_is_written_over(tmp_path):
    written(tmp_path / "pool")
    with pytest.raises(PoolError, match="a pool is there already"):
        written(tmp_path / "pool")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(PoolError, match="has other files in it"):
        written(tmp_path / "other")
    assert_equal(read_pool(tmp_path / "pool"), POOL)
    with pytest.raises(PoolError, match="no problem was added"):
        written_of(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_killed_writer_leaves_what_says_so_and_can_be_written_again(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from tests.test_pool_directory import POOL, PoolWriter\n"
        "with PoolWriter(sys.argv[1], part_size=2) as writer:\n"
        "    for block in POOL.blocks(3):\n"
        "        writer.add(block)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "pool")]
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    killed = subprocess.run(command, cwd=root, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "pool" / "part-00001.parquet").exists()
    with pytest.raises(PoolError, match="pool: unfinished, its writer did not come to the end"):
        open_pool(tmp_path / "pool")
    assert_equal(written(tmp_path / "pool").load(), POOL)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: (path / "part-00001.parquet").unlink(), "part-00001.parquet: part 2 of 3 is"),
        (
            lambda path: os.truncate(path / "part-00001.parquet", 100),
            "part-00001.parquet: 100 bytes of ",
        ),
        (lambda path: flip(path / "part-00001.parquet"), "part-00001.parquet: not as it was writt"),
        (
            lambda path: (path / "part-00009.parquet").write_bytes(b""),
            "part-00009.parquet: no part that pool.json lists; remove it",
        ),
        (lambda path: (path / MANIFEST).write_text("{"), "pool.json: is no JSON"),
        (lambda path: (path / MANIFEST).write_text("{}"), "pool.json: is no manifest of a pool"),
        (lambda path: told(path, version=2), "pool.json: version is 2, and this reads 1"),
        (lambda path: told(path, parts=[{}]), "pool.json: damaged"),
        (lambda path: told(path, parts=None), "pool.json: damaged"),
        (lambda path: told(path, kind="both"), "kind is 'both'"),
    ],
)
def test_a_damaged_directory_is_refused_in_one_line_and_stays_as_it_is(tmp_path, damage, says):
    written(tmp_path / "pool")
    damage(tmp_path / "pool")
    before = {file: file.read_bytes() for file in (tmp_path / "pool").iterdir()}
    with pytest.raises(PoolError) as refused:
        read_pool(tmp_path / "pool", format="parquet")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {file: file.read_bytes() for file in (tmp_path / "pool").iterdir()} == before


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def told(path: Path, **changes) -> None:
    said = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(said | changes))


def test_what_does_not_fit_is_said_before_it_is_read(tmp_path):
    found = written(tmp_path / "pool")
    found.num_problems = 10**9
    with pytest.raises(PoolError, match=r"1,000,000,000 problems take .* GiB .* in blocks"):
        found.load()
