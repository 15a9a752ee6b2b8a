"""Files that are there whole or not at all."""

import pytest

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


def test_versions_are_those_installed_and_none_of_what_is_not():
    versions = package_versions("numpy", "no-such-package")
    assert versions["numpy"]
    assert versions["no-such-package"] is None
