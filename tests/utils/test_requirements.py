"""A machine without RecBole, with another one, or with an older Python: one line that says what to install, and no traceback."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import recbole_llara
from recbole_llara.cli import main
from recbole_llara.utils import requirements

ROOT = Path(__file__).resolve().parent.parent.parent
ABSENT = "RecBole is not installed: pip install --no-deps recbole==1.2.1"
OTHER = "RecBole: found version 1.2.0, expected 1.2.1: pip install --no-deps recbole==1.2.1"


@pytest.fixture
def without_recbole(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    return ABSENT


@pytest.fixture
def other_recbole(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(requirements, "version", lambda name: "1.2.0")
    return OTHER


@pytest.mark.parametrize("machine", ["without_recbole", "other_recbole"])
@pytest.mark.parametrize(
    "words", [["--model=SASRec", "--dataset=ml-100k"], ["study", "quickstart"], ["serve", "--run=saved/RUN"]]
)
def test_a_command_says_what_to_install(
    machine: str, words: list[str], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    told = request.getfixturevalue(machine)
    assert main(words) == 2
    assert capsys.readouterr().err == f"recbole-llara: error: {told}\n"


@pytest.mark.parametrize("machine", ["without_recbole", "other_recbole"])
def test_python_says_it_too(machine: str, request: pytest.FixtureRequest) -> None:
    told = request.getfixturevalue(machine)
    with pytest.raises(ImportError) as caught:
        recbole_llara.load  # noqa: B018 it is imported when it is first asked for
    assert str(caught.value) == told


def test_the_recbole_of_a_checkout_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(requirements, "version", unknown)
    assert requirements.recbole_fault() is None


def _old_pythons() -> list[Path]:
    """Pythons of pyenv that this package does not run on."""
    found = [(path, path.parent.parent.name.split(".")) for path in Path.home().glob(".pyenv/versions/3.*/bin/python")]
    return sorted(path for path, version in found if 6 <= int(version[1]) < 11)


@pytest.mark.skipif(not _old_pythons(), reason="no Python before 3.11 is here (pyenv)")
@pytest.mark.parametrize(
    "words", [["run_recbole_llara.py", "--model=SASRec"], ["-m", "recbole_llara"], ["dataset_atomic/convert.py"]]
)
def test_an_old_python_is_named(words: list[str]) -> None:
    for python in _old_pythons():
        done = subprocess.run([python, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("recbole-llara: error: found Python 3.") and done.stderr.count("\n") == 1, done.stderr
        assert "expected 3.11 to 3.13" in done.stderr


@pytest.mark.skipif(
    not _old_pythons() or shutil.which("make") is None, reason="no Python before 3.11 is here (pyenv), or no make"
)
def test_make_names_an_old_python_before_it_installs(tmp_path: Path) -> None:
    for python in _old_pythons():
        words = ["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and "expected 3.11 to 3.13: make install PYTHON=python3.11" in done.stderr, done.stderr
        assert not (tmp_path / "venv").exists()
    assert sys.version_info >= (3, 11)
