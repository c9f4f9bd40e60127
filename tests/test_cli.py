"""The command line: what it prints, how it ends, and one run of a stock model from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_llara.cli import COMMANDS, main


def test_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--list_models"]) == 0
    listed = capsys.readouterr().out
    assert "--config_files" in listed and "LLaRA" in listed and "SASRec" in listed


# What takes seconds to import.
HEAVY = (
    "torch",
    "recbole",
    "transformers",
    "peft",
    "accelerate",
    "pandas",
    "numpy",
    "scipy",
    "plotly",
    "optuna",
    "fastapi",
    "ray",
)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_comes_before_anything_heavy_is_imported(command: str | None) -> None:
    words = ["--help"] if command is None else [command, "--help"]
    code = (
        "import sys\nfrom recbole_llara.cli import main\ntry: print(main(sys.argv[1:]))\nexcept SystemExit as end: print(end.code)\n"
        f"print(sorted({set(HEAVY)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True)
    *told, status, heavy = done.stdout.splitlines()
    assert (status, heavy) == ("0", "[]") and told[0].startswith("usage: recbole-llara"), done.stdout


def test_help_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "candidate_num"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("candidate_num (int in [2, inf)") and "default: 20" in told
    assert main(["--help", "candidate_nun"]) == 2
    assert "candidate_num" in capsys.readouterr().err


def test_every_command_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--model=NAME"),
        (["--model=SASRek", "--dataset=ml-100k"], "did you mean 'SASRec'"),
        (["--model=SASRec", "--dataset=nowhere"], "nowhere.inter"),
        (["--model=SASRec", "--dataset=ml-100k", "--epoch=1"], "did you mean 'epochs'"),
        (["--model=SASRec", "--dataset=ml-100k", "stray"], "expected --key=value"),
        (["recomend", "--run=saved/RUN"], "did you mean 'recommend'"),
        (["--model=SASRec", "--dataset=ml-100k", "--config_files=none.yaml"], "'none.yaml' does not exist"),
        (["--mod=SASRec", "--dataset=ml-100k"], "--model=NAME"),
    ],
)
def test_a_users_mistake_ends_with_2_and_no_traceback(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("recbole-llara: error: ") and expected in error and "Traceback" not in error


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_llara.quick_start.run_recbole_llara", interrupted)
    assert main(["--model=SASRec", "--dataset=ml-100k"]) == 130
    assert capsys.readouterr().err == "recbole-llara: interrupted\n"


@pytest.mark.slow
def test_a_stock_run_from_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("epochs: 2\nmax_train_rows: 300\n")
    (tmp_path / "more.yaml").write_text("epochs: 1\nmax_eval_rows: 50\nshow_progress: False\n")
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [
            sys.executable, "-W", "error::FutureWarning", str(root / "run_recbole_llara.py"), "--model=SASRec",
            "--dataset=ml-100k", "--config_files=small.yaml more.yaml", "--protocol=leave_one_out", "--result_file=out/result.json",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert (result["model"], result["n"], result["metrics"]["test"]["validratio"]) == ("SASRec", 50, 1.0)
    assert result["correct"] == round(result["metrics"]["test"]["hit@1"] * 50)
    (run,) = (tmp_path / "saved").glob("SASRec-ml-100k-leave_one_out-*")
    assert {"result.json", "cases.jsonl", "config.yaml", "checkpoint.safetensors"} <= {path.name for path in run.iterdir()}
    assert len((run / "cases.jsonl").read_text(encoding="utf-8").splitlines()) == 50
    assert not list(tmp_path.rglob("*.pth"))
