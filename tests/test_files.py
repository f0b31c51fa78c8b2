"""What is written appears whole; nothing that somebody else made is removed or written through."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys

import pytest

from growth.errors import InputError
from growth.files import atomic_directory, remove, set_aside, write_atomically

TOKEN = secrets.token_hex(16)

# Names that something of a person's may have, or something that is made to look like ours.
NAMES = (
    "output.partial",
    ".output.partial",
    "output.tmp",
    "text.json.partial",
    ".lock",
    ".growth-",
    ".growth-notes",
    f".growth-{TOKEN}",
    f".growth-{TOKEN}.bak",
)
FORMS = ("file", "folder", "link to a folder", "link to a file", "link to nothing")
MARKS = ("none", "empty", "another name", "a link", "a folder")


def make(path, form, elsewhere):
    """Something of a person's; links lead to what lies `elsewhere`."""
    match form:
        case "file":
            path.write_text("precious")
        case "folder":
            (path / "within").mkdir(parents=True)
            (path / "within" / "weights").write_text("precious")
        case "link to a folder":
            path.symlink_to(elsewhere, target_is_directory=True)
        case "link to a file":
            path.symlink_to(elsewhere / "weights")
        case "link to nothing":
            path.symlink_to(elsewhere / "nothing")


def tree(directory):
    """Everything below a directory, with what files hold and where links lead."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_text() if path.is_file() else None
    return found


class Failure(Exception):
    """Something went wrong while a directory was written."""


def write_well(here):
    with atomic_directory(here / "output", 1) as directory:
        (directory / "new").write_text("new")


def fail(here):
    with contextlib.suppress(Failure), atomic_directory(here / "output", 1) as directory:
        (directory / "new").write_text("new")
        raise Failure


def be_refused(here):
    (here / "output").mkdir()
    with pytest.raises(InputError, match="exists already"), atomic_directory(here / "output", 1):
        raise AssertionError("it must not come to this")


def be_too_large(here):
    with pytest.raises(InputError, match="is full"), atomic_directory(here / "output", 1 << 70):
        raise AssertionError("it must not come to this")


def write_a_file(here):
    write_atomically(here / "text.json", "new")
    write_atomically(here / "text.json", "newer")


def remove_one(here):
    (here / "doomed").mkdir()
    (here / "doomed" / "file").write_text("ours")
    remove(here / "doomed")


ACTIONS = (write_well, fail, be_refused, be_too_large, write_a_file, remove_one)

KILLED = """
import os, pathlib, signal, sys
from growth.files import atomic_directory
with atomic_directory(pathlib.Path(sys.argv[1]) / "output", 1) as directory:
    (directory / "new").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_what_a_person_made_stays(action, tmp_path):
    """Nine names × five forms, and folders of our name with five kinds of marks."""
    for number, (name, form) in enumerate((n, f) for n in NAMES for f in FORMS):
        here, elsewhere = tmp_path / str(number), tmp_path / f"{number} elsewhere"
        for directory in (here, elsewhere):
            directory.mkdir()
        (elsewhere / "weights").write_text("precious")
        make(here / name, form, elsewhere)
        before = tree(here), tree(elsewhere)
        action(here)
        action_made = {"output", "output/new", "text.json"}
        left = {n: c for n, c in tree(here).items() if n not in action_made}
        assert (left, tree(elsewhere)) == before, (name, form)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "half" in tree(tmp_path).values()
    write_a_file(tmp_path)
    assert set(tree(tmp_path)) == {"text.json"}


@pytest.mark.parametrize("kind", MARKS)
def test_a_folder_of_our_name_that_is_not_ours_stays(kind, tmp_path):
    folder, elsewhere = tmp_path / f".growth-{TOKEN}", tmp_path / "elsewhere"
    make(folder, "folder", elsewhere)
    elsewhere.write_text(f"{folder.name}\noutput")
    mark = folder / "mark"
    match kind:
        case "empty":
            mark.touch()
        case "another name":
            mark.write_text(f".growth-{secrets.token_hex(16)}\noutput")
        case "a link":
            mark.symlink_to(elsewhere)
        case "a folder":
            mark.mkdir()
    before = tree(tmp_path)
    write_well(tmp_path)
    shutil.rmtree(tmp_path / "output")
    assert tree(tmp_path) == before


def test_what_is_being_written_stays(tmp_path):
    with atomic_directory(tmp_path / "output", 1) as directory:
        (directory / "file").write_text("kept")
        write_a_file(tmp_path)
        with atomic_directory(tmp_path / "other", 1):
            pass
        with pytest.raises(InputError, match=r"another process is writing to .*output"):
            write_well(tmp_path)
    assert set(tree(tmp_path)) == {"output", "output/file", "other", "text.json"}


def test_a_process_that_was_killed_before_its_mark_leaves_nothing_for_good(tmp_path):
    (tmp_path / f".growth-{TOKEN}").mkdir()
    write_a_file(tmp_path)
    assert set(tree(tmp_path)) == {"text.json"}


@pytest.mark.parametrize("form", FORMS[1:])
def test_no_file_is_written_over_what_is_no_file(form, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("precious")
    make(tmp_path / "text.json", form, elsewhere)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"text\.json is to be written, but what is there is not"):
        write_atomically(tmp_path / "text.json", "new")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
def test_no_directory_appears_over_what_is_there(form, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make(tmp_path / "output", form, elsewhere)
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match="exists already"),
        atomic_directory(tmp_path / "output", 1),
    ):
        pass
    assert tree(tmp_path) == before


def test_a_link_is_not_removed(tmp_path):
    make(tmp_path / "elsewhere", "folder", None)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = tree(tmp_path)
    remove(tmp_path / "link")
    assert tree(tmp_path) == before


def test_what_is_set_aside_covers_nothing(tmp_path):
    for _ in range(3):
        (tmp_path / "380").mkdir()
        set_aside(tmp_path / "380", "damaged")
    assert set(tree(tmp_path)) == {"380.damaged", "380.damaged.2", "380.damaged.3"}


def test_a_full_disk_is_said_in_units_that_mean_something(tmp_path):
    with (
        pytest.raises(InputError) as error,
        atomic_directory(tmp_path / "output", 3 * 10**20),
    ):
        pass
    number = r"[\d.e+]+ [kMG]?B"
    assert re.search(rf"is full: {number} are needed, and {number} are free", str(error.value))
