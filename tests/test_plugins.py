"""Parts by name: what is found, and the one line that says why something is not."""

import dataclasses
import re
import sys

import pytest

from optscale_jax.errors import did_you_mean
from optscale_jax.plugins import PluginError, load_object

SHIPPED = {"mean": len, "attention": max}
OWN = """
from __future__ import annotations
import dataclasses
import plugin_beside

@dataclasses.dataclass(frozen=True)
class Head:
    width: int = 3

def make():
    return plugin_beside.value

number = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a part's file and another that it imports."""
    (tmp_path / "plugin_own.py").write_text(OWN)
    (tmp_path / "plugin_beside.py").write_text("value = 'beside'\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def test_a_shipped_name_is_the_shipped_part():
    assert load_object("mean", what="head", shipped=SHIPPED) is len
    assert load_object("os.path:join", what="head", shipped=SHIPPED) is __import__("os").path.join


@pytest.mark.parametrize(
    "place", ["plugin_own", "./plugin_own.py", "plugin_own.py", "{folder}/plugin_own.py"]
)
def test_a_part_of_ones_own_is_found_in_the_working_directory(folder, place):
    path = list(sys.path)
    name = f"{place.format(folder=folder)}:make"
    make = load_object(name, what="head", shipped=SHIPPED)
    assert make() == "beside"
    assert load_object(name, what="head") is make
    assert sys.path == path


def test_a_file_that_was_changed_is_read_again(folder):
    first = load_object("./plugin_own.py:Head", what="head")
    assert dataclasses.astuple(first()) == (3,)
    (folder / "plugin_own.py").write_text(OWN.replace("= 3", "= 4"))
    second = load_object("./plugin_own.py:Head", what="head")
    assert dataclasses.astuple(second()) == (4,)


def test_a_file_hides_no_package(folder):
    (folder / "dataclasses.py").write_text("raise RuntimeError('the wrong one')")
    assert load_object("./plugin_own.py:make", what="head")() == "beside"


def test_what_need_not_be_called_may_be_any_value(folder):
    assert load_object("plugin_own:number", what="law", must_call=False) == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "attentoin",
            "head 'attentoin': no such head, and one of your own is module:name or "
            "./file.py:name; did you mean attention?",
        ),
        ("other", "./file.py:name; those shipped are mean, attention"),
        (":make", "head :make: expected module:name or ./file.py:name"),
        ("plugin_own:", "head plugin_own:: expected module:name"),
        ("plugin_own:make()", "expected module:name"),
        ("plugin-own:make", "'plugin-own' is no module's name; a file's ends with .py"),
        (".plugin_own:make", "'.plugin_own' is no module's name"),
        ("plugin_no:make", "head plugin_no:make: no module plugin_no, neither installed nor in "),
        ("plugin_own.heads:make", "no module plugin_own.heads, neither"),
        ("./plugin_no.py:make", "head ./plugin_no.py:make: no file: {folder}/plugin_no.py"),
        ("./plugin_own:make", "no file: {folder}/plugin_own"),
        ("./folder.py:make", "not a Python file (.py): {folder}/folder.py"),
        ("./text.txt:make", "not a Python file (.py): {folder}/text.txt"),
        ("plugin_own:mak", "head plugin_own:mak: plugin_own has no mak; did you mean make?"),
        ("./plugin_own.py:other", "has no other; it has annotations, dataclasses, plugin_beside"),
        ("./plugin_empty.py:make", "./plugin_empty.py has no make"),
        (
            "plugin_own:number",
            "number is of type int, which cannot be called; expected a function or class that "
            "gives the head",
        ),
    ],
)
def test_a_part_that_is_not_there_is_said_in_one_line(folder, name, says):
    (folder / "folder.py").mkdir()
    (folder / "text.txt").write_text("make = len")
    (folder / "plugin_empty.py").write_text("")
    with pytest.raises(PluginError, match=re.escape(says.format(folder=folder))) as caught:
        load_object(name, what="head", shipped=SHIPPED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["plugin_bad", "./plugin_bad.py"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n\ny = x / 0\n", "line 3: ZeroDivisionError: division by zero"),
        # The line of the part's own file, not of what it calls.
        ("import json\njson.loads('{')\n", "line 2: JSONDecodeError: Expecting property name"),
        ("import plugin_no_such\n", "line 1: ModuleNotFoundError: No module named 'plugin_no"),
        ("def make(:\n  pass\n", "line 1: SyntaxError: invalid syntax"),
        ("\nraise SystemExit(3)\n", "line 2: SystemExit: 3"),
        ("raise ValueError('one\\ntwo')\n", "line 1: ValueError: one two"),
        ("assert False\n", "line 1: AssertionError"),
    ],
)
def test_a_part_that_cannot_be_imported_is_said_with_its_line(folder, place, text, says):
    (folder / "plugin_bad.py").write_text(text)
    start = f"head {place}:make: {place} cannot be imported: {folder}/plugin_bad.py, {says}"
    for _ in range(2):  # nothing half-imported stays behind
        with pytest.raises(PluginError, match=re.escape(start)) as caught:
            load_object(f"{place}:make", what="head")
        assert "\n" not in str(caught.value)


def test_a_long_list_of_names_is_cut():
    assert did_you_mean("x", [f"name{i}" for i in range(30)], "they are").endswith("name19, ...")
