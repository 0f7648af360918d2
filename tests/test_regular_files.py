"""Only regular files are read: pipes, sockets, devices and folders are refused at once."""

from __future__ import annotations

import os

import pytest
from odd_files import ODD

from fxquant.files import open_regular, read_regular


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_regular_file_is_refused_at_once(name, tmp_path):
    make, says = ODD[name]
    make(tmp_path / "odd")
    with pytest.raises(OSError, match=says):
        open_regular(tmp_path / "odd")


def test_a_file_inside_a_file_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        open_regular(tmp_path / "file" / "x")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_what_can_be_no_name_is_refused(name, tmp_path):
    with pytest.raises(OSError, match=r"no such name|too long"):
        open_regular(tmp_path / name)


def test_what_was_opened_is_read_whatever_becomes_of_the_path(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"first")
    with open_regular(path) as file:
        (tmp_path / "b").write_bytes(b"other")
        os.replace(tmp_path / "b", path)
        assert file.read() == b"first"


def test_links_are_followed_unless_they_must_not_be(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"
    with pytest.raises(OSError, match="it is a link"):
        open_regular(tmp_path / "link", follow_links=False)


def test_a_file_larger_than_expected_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(tmp_path / "file", 4)
