"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from vpt_vision.errors import UserError
from vpt_vision.files import expect_writable, writing


def write(path, text):
    with writing(path) as part:
        part.write_text(text)


def test_a_file_and_its_folders_are_made_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "page.html"
    expect_writable(path)
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        write(path, text)
        expect_writable(path)
        assert path.read_text() == text and list(path.parent.iterdir()) == [path]


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "page.html"
    write(path, "old")
    with (
        pytest.raises(UserError, match=r"page.html cannot be written \(No space left"),
        writing(path) as part,
    ):
        part.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError), writing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path, reason in (
        (tmp_path, "folder|directory"),
        (tmp_path / "file" / "x" / "y.md", "folder|directory"),
    ):
        with pytest.raises(UserError, match=reason):
            expect_writable(path)
        with pytest.raises(UserError, match=reason):
            write(path, "text")
    assert (tmp_path / "file").read_text() == "kept" and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_devices_and_links_are_written_to_directly(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "behind")
    write(link, "text")
    assert link.is_symlink() and (tmp_path / "behind").read_text() == "text"
    expect_writable(Path("/dev/null"))
    write(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
