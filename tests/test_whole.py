"""What is written is there whole or not at all, and nothing else is touched."""

from pathlib import Path

import pytest
from conftest import refused

from kd_trainer.whole import written_whole


def write(path, content):
    """A file, or a folder with a file in it."""
    if content == "folder":
        path.mkdir()
        (path / "inside").write_text("x")
    else:
        path.write_text(content)


def listed(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_text() for path in folder.rglob("*")}


@pytest.mark.parametrize("old, new", [(None, "new"), (None, "folder"), ("old", "new"), ("folder", "folder")])
def test_what_is_written_takes_the_place_of_what_is_there(tmp_path, old, new):
    path, expected = tmp_path / "made" / "a.b", tmp_path / "expected" / "made"
    if old is not None:
        path.parent.mkdir()
        write(path, old)
    expected.mkdir(parents=True)
    write(expected / "a.b", new)
    with written_whole(path) as partial:
        write(partial, new)
        assert old is None and not path.exists() or path.exists()
    assert listed(path.parent) == listed(expected)


@pytest.mark.parametrize("old, new", [("mine", "folder"), ("folder", "new")])
def test_no_file_takes_the_place_of_a_folder(tmp_path, old, new):
    write(tmp_path / "a", old)
    before = listed(tmp_path)
    with refused("move it away"), written_whole(tmp_path / "a") as partial:
        write(partial, new)
    assert listed(tmp_path) == before


@pytest.mark.parametrize("old", ["old", "folder"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_leaves_what_was_there(tmp_path, old, error):
    write(tmp_path / "a", old)
    before = listed(tmp_path)
    with pytest.raises(Exception if error is OSError else error), written_whole(tmp_path / "a") as partial:
        write(partial, "folder")
        raise error
    assert listed(tmp_path) == before


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_written(tmp_path, there):
    (tmp_path / "sub").mkdir()
    if there:
        write(tmp_path / "sub" / "mine", "old")
    (tmp_path / "a").symlink_to("sub/mine")
    with written_whole(tmp_path / "a") as partial:
        write(partial, "new")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "sub" / "mine").read_text() == "new"
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_link_to_a_folder_is_not_replaced(tmp_path):
    write(tmp_path / "mine", "folder")
    (tmp_path / "a").symlink_to(tmp_path / "mine")
    before = listed(tmp_path)
    with refused("is a link"), written_whole(tmp_path / "a") as partial:
        write(partial, "folder")
    assert listed(tmp_path) == before and (tmp_path / "a").is_symlink()


def test_what_is_new_replaces_nothing_that_came_meanwhile(tmp_path):
    with refused("meanwhile"), written_whole(tmp_path / "a", is_new=True) as partial:
        write(partial, "new")
        write(tmp_path / "a", "mine")
    assert listed(tmp_path) == {"a": "mine"}


def test_a_stop_between_the_old_and_the_new_folder_brings_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path / "a", "folder")
    before = listed(tmp_path)

    def stop(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a") as partial:
        write(partial, "folder")
        (partial / "more").write_text("x")
    assert listed(tmp_path) == before


def test_two_writers_do_not_meet(tmp_path):
    with written_whole(tmp_path / "a") as one, written_whole(tmp_path / "a") as two:
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1"


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("mine")
    with refused("cannot be written", tmp_path / "file" / "a"), written_whole(tmp_path / "file" / "a") as partial:
        partial.write_text("x")
    with refused("cannot be written"), written_whole(tmp_path / "a") as partial:
        (partial / "no folder").write_text("x")
    assert listed(tmp_path) == {"file": "mine"}
