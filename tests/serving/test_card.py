"""The model card of a run: its figures equal those counted from the run's files, and it says whom the folder names."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_server import obedient, serving
from huggingface_hub import ModelCard
from synthetic_data import write_toy_dataset

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.cli import main
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.card import model_card
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import file_sha256

Z = 1.959963984540054  # of a two-sided interval of 95 %


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson (1927), by his formula."""
    p = hits / n
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


def of_popularity(cases: list[dict[str, Any]], inter: Path) -> float:
    """How often the candidate that most users took in training is the target, ties by chance: by plain loops over the file."""
    rows = [line.split("\t") for line in inter.read_text(encoding="utf-8").splitlines()[1:]]
    by_user: dict[str, list[str]] = {}
    for user, item, _ in rows:  # the file is in order of time
        by_user.setdefault(user, []).append(item)
    counts: Counter[str] = Counter()
    for items in by_user.values():
        counts.update(set(items[:-2]))  # the last two are for test and validation
    share = 0.0
    for case in cases:
        most = max(counts[item] for item in case["candidates"])
        best = [item for item in case["candidates"] if counts[item] == most]
        share += (case["target"] in best) / len(best)
    return share / len(cases)


def test_the_card_tells_what_was_measured(make_run, tmp_path):
    run = Path(make_run(fusion="validation", max_eval_rows=30))
    card = ModelCard(str(model_card(run)))
    cases = read_records(run / "cases.jsonl")
    n, hits = len(cases), sum(case["correct"] for case in cases)
    (hit,) = [one for one in card.data.eval_results if one.metric_type == "hit@1"]
    low, high = wilson(hits, n)
    assert hit.metric_value == round(hits / n, 4) and hit.metric_args["n"] == n
    assert hit.metric_args["interval_95"] == pytest.approx([low, high])
    assert f"| LLaRA + SASRec         |     {hits / n:.4f} | {low:.3f} to {high:.3f} |     1.0000 | {n} |" in card.text
    alone = json.loads((run / "result.json").read_text(encoding="utf-8"))["fusion"]["alone"]
    for name in ("SASRec", "LLaRA"):
        share = alone[name]["test"]["hit@1"]
        low, high = wilson(round(share * n), n)
        assert f"| {name} alone".ljust(25) + f"|     {share:.4f} | {low:.3f} to {high:.3f} |" in card.text
    popular = of_popularity(cases, tmp_path / "toy" / "toy.inter")
    assert f"| most popular candidate |     {popular:.4f} |" in card.text


def test_the_card_tells_of_data_training_and_weights(make_run, tmp_path, keys):
    run = Path(make_run(epochs=2))
    text = str(model_card(run))
    assert "| users, items | 40, 60 |" in text and "| interactions | 480; " in text
    assert "| rows | train 48, valid 12, test 12 |" in text
    assert "| trained | 96 rows (repeated ones counted) in 6 optimiser steps |" in text  # 2 epochs of 48 rows, 16 a step
    for key in ("train_batch_size: 16", "rec_epochs: 1", "candidate_num: 10", "llm_path: …/llm"):
        assert key in text
    assert str(tmp_path) not in text and "show_progress" not in text
    given = text.split("| keys other than the defaults | ")[1].split("\n")[0]
    assert "strategy" not in given or "strategy: direct" in given
    digest = file_sha256(run / "checkpoint" / "item_tokens.safetensors")
    assert f"| checkpoint/item_tokens.safetensors | {digest} |" in text


def test_a_key_with_its_default_is_not_told(make_run):
    run = Path(make_run(learning_rate=0.0008, lora_r=4))
    given = str(model_card(run)).split("| keys other than the defaults | ")[1].split("\n")[0]
    assert "lora_r: 4" in given and "learning_rate" not in given


def test_the_card_says_whom_the_folder_names(make_run, tmp_path):
    run = Path(make_run())
    own = str(model_card(run))
    assert "**Users' ids and histories**: in cases.jsonl" in own and "Hashes of 40 users' ids" in own
    out = export(run, tmp_path / "out")
    shared = (out / "README.md").read_text(encoding="utf-8")
    assert "No user's id and no history." in shared and "Hashes" not in shared and "ids of 60 items" in shared
    assert str(tmp_path) not in shared and "weights: as it is" in shared
    # The exported folder's own request names every key; its card still tells those that are not defaults.
    given = [text.split("| keys other than the defaults | ")[1].split("\n")[0] for text in (own, str(model_card(out)))]
    assert "candidate_num: 10" in given[1] and "candidate_exclude" not in given[1] and len(given[1]) < 2 * len(given[0])


def test_a_stock_run_has_a_card_too(make_run):
    run = Path(make_run("SASRec"))
    card = ModelCard(str(model_card(run, licence="apache-2.0")))
    assert card.data.license == "apache-2.0" and "base LLM" not in card.text and "| model | SASRec |" in card.text
    assert "| checkpoint.safetensors | " in card.text and "To be filled in" not in card.text


def test_a_chat_models_run_has_a_card_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    with serving(obedient) as server:
        keys = {**write_toy_dataset(tmp_path), "max_eval_rows": 5, "api_model": "toy-1", "api_base": server.api_base}
        run = run_recbole_llara("ChatLLM", "toy", config_dict=keys)["run_dir"]
    text = str(model_card(run))
    assert "| LLM | toy-1, behind an API; nothing was trained |" in text and "recbole_llara.load" not in text
    assert "secret-of-the-test" not in text and "api_model: toy-1" in text and "Weights, by SHA-256" not in text


def test_the_command_writes_a_card_once(make_run, tmp_path, capsys):
    run = make_run("SASRec")
    words = ["card", f"--run={run}", f"--output={tmp_path / 'README.md'}"]
    assert main(words) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.model_name == "SASRec on toy" and "**To be filled in**" in text
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["card", f"--run={run}", "--epoch=3"]) == 2
    assert "expected no key with --run" in capsys.readouterr().err


def test_what_has_no_card(make_run, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        model_card(tmp_path)
    run = Path(make_run("SASRec"))
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    del result["data"]
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(UserError, match=r"does not tell what a card needs \(KeyError: 'data'\)"):
        model_card(run)
