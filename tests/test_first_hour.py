"""What a newcomer meets in the first hour: each mistake ends with one line, and the page on troubleshooting has a row with that line."""

import errno
from pathlib import Path

import pytest
from bad_inputs import assert_refused, run
from synthetic_data import write_toy_dataset

from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.utils import atomic
from recbole_llara.utils.requirements import RECBOLE

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "pages" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(tmp_path)
    return write_toy_dataset(tmp_path)


def without_weights(folder: Path) -> None:
    """A folder ``llm`` that has everything of an LLM but its weights."""
    (folder / "llm").mkdir()
    for path in TINY_LLAMA_DIR.iterdir():
        if path.suffix != ".safetensors":
            (folder / "llm" / path.name).write_bytes(path.read_bytes())


# What was done wrong: (model, arguments, what the line says, of that what the page quotes)
MISTAKES = {
    "a key of another program": ("SASRec", ["--device=cuda"], ["unknown key 'device' (command line): use_gpu and gpu_id choose the device"]),
    "a misspelt key": ("SASRec", ["--learning_rat=1"], ["unknown key 'learning_rat' (command line): did you mean 'learning_rate'"]),
    "a misspelt model": ("SASREC", [], ["model: found 'SASREC', expected one of ours or a RecBole sequential one; did you mean 'SASRec'"]),
    "a dataset that is not there": (
        "SASRec", ["--dataset=ml100k", "--data_path=dataset"],
        ["dataset: found 'ml100k', expected ml-100k or a folder with 'ml100k.inter' in data_path 'dataset'", "did you mean 'ml-100k'?"],
    ),
    "an LLM without weights": (
        "LLaRA", ["--llm_path=./llm"],
        ["a folder without a readable causal LM (Error no file named model.safetensors, or pytorch_model.bin", "llm_path is './llm'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_the_page_has(
    name: str, toy: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, arguments, parts = MISTAKES[name]
    without_weights(tmp_path)
    assert_refused(capsys, run(model, toy, arguments), parts, tmp_path / "saved")
    assert parts[0] in PAGE


def test_titles_that_are_nowhere(toy: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy" / "toy.item").unlink()
    keys = {key: value for key, value in toy.items() if key != "title_field"}
    parts = ["title_field: found None", f"no file {tmp_path / 'toy' / 'toy.item'}", "set title_field"]
    assert_refused(capsys, run("LLaRA", keys), parts, tmp_path / "saved")
    assert parts[0] in PAGE


def test_no_compiler(
    toy: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    told = "torch_compile: found no C++ compiler (g++, clang++, c++), which a CPU needs"
    assert_refused(capsys, run("LLaRA", toy, ["--torch_compile=True"]), [told, "torch_compile: False"])
    assert told in PAGE


def test_a_full_disk(toy: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    assert run("SASRec", toy) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("recbole-llara: error: ") and "No space left on device" in last and "Traceback" not in last
    assert "No space left on device" in PAGE


def test_a_second_run_has_a_folder_of_its_own(toy: dict[str, object], tmp_path: Path) -> None:
    assert [run("SASRec", toy), run("SASRec", toy)] == [0, 0]
    assert len(list((tmp_path / "saved").glob("SASRec-*/result.json"))) == 2


@pytest.mark.parametrize(
    "told",
    [
        "expected 3.11 to 3.13",
        "RecBole is not installed",
        f"RecBole: found version 1.2.0, expected {RECBOLE}",
        "sees no such GPU",
        "the hub cannot be reached, and its cache on this machine lacks the model",
        "the hub gives this model only to people who accepted its licence",
        "the hub knows no such public model",
        "checkpoint_dir: nothing can be written to 'saved'",
        "log: RecBole writes into this folder of the working folder",
        "resumes from the last state",
        "interrupted",
    ],
)
def test_the_page_has_what_other_tests_see(told: str) -> None:
    assert told in PAGE
