"""Pools: what a file may hold, what is refused and how the refusal reads."""

import io
import os
import stat
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optscale_jax.errors import InputError, PoolError
from optscale_jax.pool import Pool

ARRAYS = ("scores", "correct", "tokens", "answers", "gold", "problem_ids", "mask")


def arrays(num_problems=3, num_samples=4) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (num_problems, num_samples)
    answers = generator.integers(-1, 3, shape).astype(np.int16)
    gold = np.zeros(num_problems, np.int16)
    return {
        "scores": generator.random(shape).astype(np.float32),
        "correct": answers == gold[:, None],
        "tokens": generator.integers(1, 500, shape).astype(np.int32),
        "answers": answers,
        "gold": gold,
        "problem_ids": np.array([f"set/{index}" for index in range(num_problems)]),
    }


def changed(name, index, value) -> dict[str, np.ndarray]:
    result = arrays()
    result[name] = result[name].copy()
    result[name][index] = value
    return result


def assert_equal(left: Pool, right: Pool) -> None:
    assert left.kind == right.kind
    assert set(left.signals) == set(right.signals)
    pairs = [(name, getattr(left, name), getattr(right, name)) for name in ARRAYS]
    pairs += [(name, left.signals[name], right.signals[name]) for name in left.signals]
    for name, a, b in pairs:
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)


@st.composite
def pools(draw) -> Pool:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    ids = hnp.arrays(np.int32, shape, elements=st.integers(-1, 4))
    lengths = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(1, shape[1])))
    return Pool.from_arrays(
        scores=draw(st.none() | hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32))),
        correct=draw(st.none() | hnp.arrays(bool, shape)),
        tokens=draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, 2**31 - 1))),
        answers=draw(st.none() | ids),
        gold=draw(st.none() | hnp.arrays(np.int32, shape[0], elements=st.integers(-1, 4))),
        problem_ids=draw(
            st.lists(
                # NumPy drops trailing NULs of fixed-width strings, and surrogates are not text.
                st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6),
                min_size=shape[0],
                max_size=shape[0],
                unique=True,
            )
        ),
        mask=np.arange(shape[1]) < lengths[:, None],
        kind=draw(st.sampled_from(["parallel", "sequential"])),
        signals=draw(
            st.dictionaries(
                st.sampled_from(["min_step", "finished", "a judge's"]),
                hnp.arrays(np.float32, shape, elements=st.floats(width=32, allow_infinity=False)),
            )
        ),
    )


@settings(max_examples=60)
@given(pool=pools())
def test_load_after_save_is_the_identity(pool, tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool.npz"
    pool.save(path)
    assert_equal(Pool.load(path), _with_derived_correct(pool))


def _with_derived_correct(pool: Pool) -> Pool:
    """A pool without correctness gains it on loading, if its answers and gold decide it."""
    return Pool.from_arrays(**{name: getattr(pool, name) for name in (*ARRAYS, "kind", "signals")})


def test_equal_pools_give_equal_bytes_and_leave_no_other_file(tmp_path):
    pool = Pool.from_arrays(**arrays())
    pool.save(tmp_path / "a" / "pool.npz")
    Pool.load(tmp_path / "a" / "pool.npz").save(tmp_path / "b.npz")
    assert (tmp_path / "a" / "pool.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b.npz"]
    assert os.listdir(tmp_path / "a") == ["pool.npz"]


def test_saved_file_has_ordinary_permissions(tmp_path):
    Pool.from_arrays(**arrays()).save(tmp_path / "pool.npz")
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("pool.npz", "plain")]
    assert modes[0] == modes[1]


def test_interrupted_save_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "pool.npz"
    pool = Pool.from_arrays(**arrays())
    pool.save(path)
    before = path.read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        pool.subset([1]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["pool.npz"]


def test_properties():
    pool = Pool.from_arrays(**arrays())
    assert (pool.num_problems, pool.num_samples) == (3, 4)
    assert pool.has_scores
    assert pool.correct is not None
    assert pool.has_answers
    assert pool.has_tokens
    assert pool.problem_ids.tolist() == ["set/0", "set/1", "set/2"]
    np.testing.assert_array_equal(pool.samples_per_problem, [4, 4, 4])


def test_a_pool_prints_in_five_lines_whatever_it_lacks():
    mask = np.arange(4) < np.array([[4], [3], [2]])
    pool = Pool.from_arrays(**arrays(), mask=mask, signals={"length": np.ones((3, 4))})
    lines = repr(pool).splitlines()
    share = pool.correct[mask].mean()
    assert len(lines) == 5
    assert "3 problems x 2 to 4 completions" in lines[0]
    assert f"mean {pool.scores[mask].mean():.3f}" in lines[1]
    assert f"{share:.1%} of the completions" in lines[2]
    assert f"{pool.num_unanswered[0]} of 9; signals: length" in lines[3]
    bare = repr(Pool.from_arrays(answers=[[-1]]))
    assert [line.split(":")[1].strip() for line in bare.splitlines()[1:3]] == ["none", "not known"]


def test_least_pool_and_what_it_lacks():
    pool = Pool.from_arrays(scores=[[0.5, 1.0]])
    assert pool.correct is None
    assert not pool.has_answers
    assert not pool.has_tokens
    assert pool.problem_ids.tolist() == ["0"]
    assert pool.eligible.all()


def test_arrays_are_copied_and_read_only():
    given_arrays = arrays()
    signals = {"mean_step": given_arrays["scores"]}
    pool = Pool.from_arrays(**given_arrays, signals=signals)
    given_arrays["scores"][0, 0] = 0.123
    given_arrays["problem_ids"][0] = "x"
    assert pool.signals["mean_step"][0, 0] == pool.scores[0, 0]
    assert pool.scores[0, 0] != np.float32(0.123)
    assert pool.problem_ids[0] == "set/0"
    for array in [*(getattr(pool, name) for name in ARRAYS), pool.signals["mean_step"]]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]


def test_eligible_leaves_out_empty_answerless_and_absent_completions():
    pool = Pool.from_arrays(
        scores=[[0.9, 0.8, 0.7, 0.6, 0.5]],
        tokens=[[0, 10, -1, 10, 10]],
        answers=[[2, -1, 2, 2, 2]],
        mask=[[True, True, True, True, False]],
    )
    np.testing.assert_array_equal(pool.eligible, [[False, False, True, True, False]])
    # Without answers, only an empty completion is known to be none.
    pool = Pool.from_arrays(scores=[[0.9, 0.8]], tokens=[[0, -1]])
    np.testing.assert_array_equal(pool.eligible, [[False, True]])


def test_correct_is_derived_from_answers_and_gold():
    pool = Pool.from_arrays(answers=[[0, 1, -1], [2, 2, 0]], gold=[1, 2])
    np.testing.assert_array_equal(pool.correct, [[False, True, False], [True, True, False]])
    # -1 == -1 is not a match, and a problem without gold leaves correctness unknown.
    assert Pool.from_arrays(answers=[[0, -1], [1, 1]], gold=[-1, 1]).correct is None
    given_one = Pool.from_arrays(answers=[[0, 1]], gold=[0], correct=[[False, True]])
    np.testing.assert_array_equal(given_one.correct, [[False, True]])


def test_masked_values_are_ignored_and_made_harmless():
    pool = Pool.from_arrays(
        scores=[[0.5, np.nan], [0.25, 7.0]],
        correct=[[1, 1], [0, 1]],
        tokens=[[3, -9], [4, 5]],
        answers=[[1, -7], [1, 2**40]],
        mask=[[1, 0], [1, 0]],
        signals={"length": [[3, np.inf], [np.nan, 4]]},
    )
    np.testing.assert_array_equal(pool.signals["length"], [[3, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(pool.scores, np.float32([[0.5, 0], [0.25, 0]]))
    np.testing.assert_array_equal(pool.correct, [[True, False], [False, False]])
    np.testing.assert_array_equal(pool.tokens, [[3, -1], [4, -1]])
    np.testing.assert_array_equal(pool.answers, [[1, -1], [1, -1]])
    assert pool.has_tokens


def test_all_nan_scores_mean_no_verifier(tmp_path):
    path = tmp_path / "pool.npz"
    np.savez(path, **{**arrays(), "scores": np.full((3, 4), np.nan), "agree": np.eye(3, 4)})
    assert not Pool.load(path).has_scores
    np.testing.assert_array_equal(Pool.load(path, scores="agree").scores, np.eye(3, 4))


def test_kind_is_parallel_unless_given_and_stays_with_parts(tmp_path):
    assert Pool.from_arrays(**arrays()).kind == "parallel"
    pool = Pool.from_arrays(**arrays(), kind="sequential")
    assert pool.subset([1]).kind == "sequential"
    # Pools written before there were kinds read as parallel, and those still look the same.
    Pool.from_arrays(**arrays()).save(tmp_path / "pool.npz")
    assert "kind" not in np.load(tmp_path / "pool.npz").files


def test_unknown_arrays_are_tolerated_even_objects(tmp_path):
    path = tmp_path / "pool.npz"
    np.savez(path, **arrays(), notes=np.array([{"a": 1}], dtype=object))
    assert Pool.load(path).num_problems == 3


def test_clip_moves_scores_to_the_nearer_end(tmp_path):
    path = tmp_path / "pool.npz"
    np.savez(path, scores=[[-0.02, 0.5, 1.05]])
    np.testing.assert_array_equal(Pool.load(path, clip=True).scores, [[0, 0.5, 1]])
    assert Pool.load(path, clip=True).scores.dtype == np.float32


def test_float64_rounding_at_one_is_no_error():
    assert Pool.from_arrays(scores=[[1 + 1e-12]]).scores[0, 0] == 1


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ([2, 0], ["set/2", "set/0"]),
        (np.array([False, True, True]), ["set/1", "set/2"]),
        (slice(1, None), ["set/1", "set/2"]),
        (["set/1"], ["set/1"]),
        (-1, ["set/2"]),
    ],
)
def test_subset_keeps_the_order_given(problems, expected):
    pool = Pool.from_arrays(**arrays(), signals={"finished": arrays()["correct"]})
    part = pool.subset(problems)
    assert part.problem_ids.tolist() == expected
    rows = [pool.problem_ids.tolist().index(name) for name in expected]
    np.testing.assert_array_equal(part.scores, pool.scores[rows])
    np.testing.assert_array_equal(part.gold, pool.gold[rows])
    np.testing.assert_array_equal(part.signals["finished"], pool.correct[rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.subset([3]), "subset: index 3 is out of bounds"),
        (lambda p: p.subset(["set/9"]), "subset: no problem 'set/9'"),
        (lambda p: p.subset([]), "an empty pool"),
        (lambda p: p.subset([1, 1]), "repeats 'set/1'"),
        (lambda p: p.subset([0.5]), "subset: "),
    ],
)
def test_bad_selection_is_one_clear_line(change, message):
    with pytest.raises(PoolError, match=message) as caught:
        change(Pool.from_arrays(**arrays()))
    assert "\n" not in str(caught.value)


BAD = {
    "nan": (changed("scores", (1, 2), np.nan), r"scores\[1, 2\] is nan; score every completion"),
    "infinite": (changed("scores", (2, 3), np.inf), r"scores\[2, 3\] is inf; scores are finite"),
    "above one": (changed("scores", (0, 1), 1.5), r"scores\[0, 1\] is 1.5; .*--clip true"),
    "below zero": (changed("scores", (0, 1), -0.25), r"scores\[0, 1\] is -0.25; .*--clip true"),
    "huge": (
        {"scores": np.array([[0.5, 1e300]])},
        r"scores\[0, 1\] is 1e\+300; scores are in \[0, 1\]",
    ),
    "shapes": (
        {**arrays(), "tokens": np.ones((3, 5), int)},
        r"tokens has shape \(3, 5\) but scores has \(3, 4\)",
    ),
    "gold shape": (
        {**arrays(), "gold": np.zeros(4, int)},
        r"gold has shape \(4,\) but scores has \(3, 4\); it must have one entry a problem",
    ),
    "one axis": ({"scores": np.ones(3)}, r"scores has shape \(3,\); it must have two axes"),
    "no problems": ({"scores": np.ones((0, 4))}, r"shape \(0, 4\); an empty pool"),
    "no samples": ({"scores": np.ones((4, 0))}, r"shape \(4, 0\); an empty pool"),
    "same id": (
        {**arrays(), "problem_ids": np.array(["a", "b", "a"])},
        r"problem_ids\[2\] repeats 'a' of problem_ids\[0\]",
    ),
    "ids of floats": ({**arrays(), "problem_ids": np.ones(3)}, "problem_ids has type float64"),
    "text scores": (
        {**arrays(), "scores": np.full((3, 4), "high")},
        "scores has type <U4; give real numbers",
    ),
    "complex scores": ({"scores": np.ones((1, 1), complex)}, "scores has type complex128"),
    "negative tokens": (
        changed("tokens", (2, 0), -2),
        r"tokens\[2, 0\] is -2; give integers of at least 0, or -1 for unknown",
    ),
    "part tokens": (
        {**arrays(), "tokens": np.full((3, 4), 1.5)},
        r"tokens\[0, 0\] is 1.5; give integers, with -1 for unknown",
    ),
    "nan tokens": ({**arrays(), "tokens": np.full((3, 4), np.nan)}, r"tokens\[0, 0\] is nan"),
    "long answers": (
        {**arrays(), "answers": np.full((3, 4), 2**40)},
        r"answers\[0, 0\] is 1099511627776; at most 2147483647 fits",
    ),
    "negative gold": (changed("gold", 1, -3), r"gold\[1\] is -3; .* -1 for no gold answer"),
    "grades": (
        {**arrays(), "correct": np.full((3, 4), 2)},
        r"correct\[0, 0\] is 2; give booleans, or 0 and 1",
    ),
    "kind": ({**arrays(), "kind": "both"}, "kind is 'both'; it must be 'parallel' or 'seq"),
    "empty problem": (
        {**arrays(), "mask": np.array([[1] * 4, [0] * 4, [1] * 4], bool)},
        r"mask\[1\] is all False",
    ),
    "gap": (
        {**arrays(), "mask": np.array([[1] * 4, [1, 0, 1, 0], [1] * 4], bool)},
        r"mask\[1, 2\] is True after a False",
    ),
    "signal's shape": (
        {**arrays(), "signals/min_step": np.ones((4, 3))},
        r"signals/min_step has shape \(4, 3\) but scores has \(3, 4\); both must be",
    ),
    "infinite signal": (
        {**arrays(), "signals/a": np.array([[0.0, np.nan, 1, 1e39]] * 3)},
        r"signals/a\[0, 3\] is 1e\+39; give finite float32, or NaN for not known",
    ),
    "signal of texts": (
        {**arrays(), "signals/a": np.full((3, 4), "stop")},
        r"signals/a has type <U4; give real numbers",
    ),
    "nothing": ({"scores": np.float32(1)}, r"scores has shape \(\); it must have two axes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_array_is_one_clear_line_with_the_file(name, tmp_path):
    bad, message = BAD[name]
    path = tmp_path / "bad.npz"
    np.savez(path, **bad)
    with pytest.raises(PoolError, match=message) as caught:
        Pool.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    signals = {name.removeprefix("signals/"): bad[name] for name in bad if "/" in name}
    fields = {name: bad[name] for name in bad if "/" not in name}
    with pytest.raises(ValueError, match=message):
        Pool.from_arrays(**fields, signals=signals)


def write_text(path):
    path.write_text("scores,correct\n")


def write_truncated(path):
    np.savez(path, **arrays(30, 40))
    path.write_bytes(path.read_bytes()[:2000])


def write_damaged(path):
    np.savez(path, **arrays(30, 40))
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)


def write_objects(path):
    np.savez(path, scores=np.array([[None, 1.0]], dtype=object))


def write_array(path):
    with open(path, "wb") as file:
        np.save(file, np.ones((2, 2)))


def write_claim(path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)}
    np.lib.format.write_array_header_1_0(held := io.BytesIO(), header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scores.npy", held.getvalue())


def write_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scores.npy", b"\x93NUMPY\1\0\x08\0{'descr(\n")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (write_claim, "scores says that it has 4398046511104 bytes, but the file has 0"),
        (write_header, "scores is damaged"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.write_bytes(b""), "not a complete .npz"),
        (write_text, "not a complete .npz"),
        (write_truncated, "not a complete .npz"),
        (write_damaged, "scores is damaged"),
        (write_objects, "scores holds Python objects, which are never unpickled"),
        (write_array, "a single array"),
        (lambda path: np.savez(path, correct=np.ones((2, 2))), r"no array 'scores' \(it has corr"),
        (lambda path: np.savez(path), r"no array 'scores' \(it has none\)"),
    ],
)
def test_unreadable_file_is_one_clear_line(write, message, tmp_path):
    path = tmp_path / "pool.npz"
    write(path)
    with pytest.raises(PoolError, match=message) as caught:
        Pool.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_file_that_unpacks_out_of_proportion_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "pool.npz"
    np.savez_compressed(path, scores=np.zeros((1 << 13, 5 << 10)))
    with pytest.raises(InputError, match=r"bytes that unpack to 33554\d{4} and more") as caught:
        Pool.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_signal_names_those_that_exist(tmp_path):
    path = tmp_path / "pool.npz"
    np.savez(path, scores=np.ones((1, 1)), agree=np.ones((1, 1)))
    with pytest.raises(PoolError, match=r"no array 'other' \(it has scores, agree\)"):
        Pool.load(path, scores="other")


def test_ragged_and_absent_arrays_are_refused():
    with pytest.raises(PoolError, match="scores is ragged"):
        Pool.from_arrays(scores=[[0.1, 0.2], [0.3]])
    with pytest.raises(PoolError, match="no array with completions"):
        Pool.from_arrays(gold=[0])
