"""Files and folders that appear whole or not at all, whatever interrupts the writing."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recbole_llara.utils import atomic
from recbole_llara.utils.atomic import sole_writer, sweep, write_file, write_folder

ROOT = Path(__file__).parents[2]
# A writer that is killed by the operating system in the midst of its work.
KILLED = """
import os, signal, sys
from pathlib import Path
from recbole_llara.utils.atomic import write_file, write_folder

def write(place):
    if sys.argv[1] == "folder":
        place = place / "one"
    place.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

{"file": write_file, "folder": write_folder}[sys.argv[1]](Path(sys.argv[2]), write)
"""


def _fill(text, names=("one", "two")):
    def fill(folder):
        for name in names:
            (folder / name).write_text(text)

    return fill


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[True, False], ids=["swap", "two renames"])
def _swapping(request, monkeypatch):
    """Folders replaced in one step, and as where the file system cannot do that."""
    if not request.param:
        monkeypatch.setattr(atomic, "_swap", lambda one, other: False)


def test_a_file_is_made_with_its_folder_and_replaced(tmp_path):
    path = tmp_path / "deep" / "file"
    for text in ("first", "second"):
        assert write_file(path, lambda place, text=text: place.write_text(text)) == path
        assert path.read_text() == text and _names(path.parent) == ["file"]


@pytest.mark.usefixtures("_swapping")
def test_a_folder_is_made_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    write_folder(path, _fill("first"))
    write_folder(path, _fill("second", ["two", "three"]))
    assert _names(path) == ["three", "two"] and (path / "two").read_text() == "second"
    assert _names(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_and_nothing_else(tmp_path, error):
    write_file(tmp_path / "file", lambda place: place.write_text("old"))
    write_folder(tmp_path / "folder", _fill("old"))

    def broken(place):
        (place / "one" if place.is_dir() else place).write_text("half")
        raise error

    with pytest.raises(error):
        write_file(tmp_path / "file", broken)
    with pytest.raises(error):
        write_folder(tmp_path / "folder", broken)
    assert _names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "one").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_the_old_and_what_can_be_swept(tmp_path, kind):
    path = tmp_path / kind
    write = {"file": lambda: write_file(path, lambda place: place.write_text("old")),
             "folder": lambda: write_folder(path, _fill("old"))}[kind]  # fmt: skip
    write()
    process = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == -signal.SIGKILL
    assert (path if kind == "file" else path / "one").read_text() == "old"
    assert len(_names(tmp_path)) == 2
    write()  # a temporary left behind is in nobody's way
    sweep(path)
    assert _names(tmp_path) == [kind]


def test_a_sweep_takes_nothing_of_others(tmp_path):
    others = [f".other.{'0' * 32}.part", ".file.lock", f".file.{'0' * 32}.tmp", f".file.tsv.{'0' * 32}.part", "file.part"]
    for name in others:
        (tmp_path / name).write_text("")
    sweep(tmp_path / "file")
    sweep(tmp_path / "none" / "file")
    assert _names(tmp_path) == sorted(others)


def test_a_crash_between_two_renames_loses_no_folder(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "folder", _fill("old"))
    monkeypatch.setattr(atomic, "_swap", lambda one, other: False)
    replace = os.replace

    def killed_after_the_first(one, other):
        if other == path:
            raise KeyboardInterrupt
        replace(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", killed_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            write_folder(path, _fill("new"))
    assert not path.exists()
    sweep(path)
    assert _names(tmp_path) == ["folder"] and (path / "one").read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="folders are swapped in one step on Linux alone")
def test_a_reader_never_misses_a_file_of_a_folder_that_is_replaced(tmp_path):
    """A hundred replacements under a reader's eyes: it finds every file at all times, and none older than the last."""
    names = [f"file{number}" for number in range(5)]
    path = write_folder(tmp_path / "folder", _fill("0", names))
    done, seen, missed = threading.Event(), [0], []

    def read():
        while not done.is_set():
            for name in names:
                try:
                    seen.append(int((path / name).read_text()))
                except FileNotFoundError as error:
                    missed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 101):
        write_folder(path, _fill(str(number), names))
    done.set()
    reader.join()
    assert not missed and seen == sorted(seen) and seen[-1] > 1


HOLDING = """
import sys, time
from pathlib import Path
from recbole_llara.utils.atomic import sole_writer, write_folder

def fill(folder):
    (folder / "one").write_text("half")
    print("holding", flush=True)
    time.sleep(600)

with sole_writer(Path(sys.argv[1])):
    write_folder(Path(sys.argv[1]), fill)
"""


def test_a_lock_keeps_others_out_and_ends_with_its_killed_holder(tmp_path, caplog):
    """The waiting process goes on when the holder is killed, and finds nothing of its half-written folder."""
    path = tmp_path / "folder"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(path)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "holding\n"
        entered = threading.Event()

        def enter():
            with sole_writer(path):
                entered.set()

        waiting = threading.Thread(target=enter)
        with caplog.at_level("INFO"):
            waiting.start()
            assert not entered.wait(0.3) and "Waiting for another process" in caplog.text
        assert len(_names(tmp_path)) == 2  # the lock and what is half-written
        holder.send_signal(signal.SIGKILL)
        assert entered.wait(30)
        waiting.join()
    finally:
        holder.kill()
        holder.communicate()
    assert [name for name in _names(tmp_path) if not name.endswith(".lock")] == []
