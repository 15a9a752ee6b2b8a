"""Files that are there whole or not at all."""

import os
import subprocess

import pytest

from optscale_jax.cli.outputs import output_folder
from optscale_jax.files import atomic_write, package_versions


def test_a_file_takes_the_place_of_an_older_one_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("old\n")
    with atomic_write(path) as file:
        file.write("né\n")
        file.flush()
        assert path.read_text() == "old\n"
    assert path.read_bytes() == "né\n".encode()
    with atomic_write(path, binary=True) as file:
        file.write(b"\r\n")
    assert path.read_bytes() == b"\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_on_the_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way():
        with atomic_write(path) as file:
            file.write("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_processes_that_have_ended_left_unfinished_goes_with_the_next_write(tmp_path):
    path, ended = tmp_path / "a[1].txt", subprocess.Popen(["true"])
    ended.wait()
    stays = [".a[1].txt.1.tmp", ".a[1].txt.x.tmp", ".a.txt.999999.tmp", "a[1].txt.999999.tmp"]
    for number in (ended.pid, os.getpid()):
        (tmp_path / f".a[1].txt.{number}.tmp").write_text("half")
        (tmp_path / f".out.{number}.tmp").mkdir()
        (tmp_path / f".out.{number}.tmp" / "half").write_text("half")
    for name in stays:
        (tmp_path / name).write_text("another's")
    with atomic_write(path) as file:
        file.write("whole")
    with output_folder(tmp_path / "out", ["*.txt"]) as folder:
        (folder / "b.txt").write_text("whole")
    assert {one.name for one in tmp_path.iterdir()} == {*stays, path.name, "out"}
    assert path.read_text() == (tmp_path / "out" / "b.txt").read_text() == "whole"


def test_versions_are_those_installed_and_none_of_what_is_not():
    versions = package_versions("numpy", "no-such-package")
    assert versions["numpy"]
    assert versions["no-such-package"] is None
