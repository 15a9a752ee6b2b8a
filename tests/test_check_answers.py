"""eval.check_answers on small files with one fault each."""

import json

import pytest

from eval import check_answers

pytest.importorskip("mpmath")


def written(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_right_ones_pass_and_faults_are_named(tmp_path, capsys):
    records = [
        {"answer": "0.5", "solution": r"so $\boxed{\frac12}$"},
        {"answer": "16 - 3\n#### 1,300"},
        {"answer": "x^2+2x+1", "solution": r"\boxed{(x+1)^2}"},
        {"answer": "bare"},
    ]
    assert check_answers.main([written(tmp_path, *records)]) == 0
    assert capsys.readouterr().out == "problems.jsonl: 4 of 4\n"
    records += [
        {"answer": "7", "solution": r"\boxed{8}"},
        {"answer": "7", "solution": "seven"},
        {"answer": "none\n#### many"},
    ]
    path = written(tmp_path, *records)
    assert check_answers.main([path]) == 1
    assert check_answers.main([path, "--least", "0.5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:4] == [
        "  line 5: solution gives '8', answer is '7'",
        "  line 6: solution gives None, answer is '7'",
        "  line 7: no number in 'none\\n#### many'",
        "problems.jsonl: 4 of 7",
    ]


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    assert check_answers.main([str(tmp_path / "nothing.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert check_answers.main([written(tmp_path, {"question": "?"})]) == 2
    assert "line 1: no field 'answer'" in capsys.readouterr().err
