"""The worked examples of docs/pages/extend: their files are taken from the pages, their commands are run on toy data."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from commands import write_files
from toy_run import toy_keys

import recbole_llara
from recbole_llara import cli
from recbole_llara.config import models
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

STOCK = ("data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress")
PAGES = Path(__file__).resolve().parent.parent / "docs" / "pages" / "extend"


@pytest.fixture
def follow(tmp_path, monkeypatch, make_llm, make_tokenizer):
    """Writes a page's files into an empty folder, runs its commands on toy data, and returns the results in their order."""

    monkeypatch.setattr(models, "MODELS", models.MODELS.copy())  # as it was, after the test

    def run(page: str) -> list[tuple[Path, dict]]:
        text = (PAGES / page).read_text(encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        toy = {**toy_keys(tmp_path, make_llm, make_tokenizer), "rec_max_train_rows": 64}
        if page == "model.md":  # which has its own
            del toy["epochs"], toy["strategy"]
        write_files(text, tmp_path)
        runs = []
        for command in re.findall(r"^python (.*)$", text, re.MULTILINE):
            program, *words = shlex.split(command)
            name = next((word.removeprefix("--model=") for word in words if word.startswith("--model=")), None)
            if program != "run_recbole_llara.py":
                code = Path(program).read_text(encoding="utf-8").replace("dataset/shop", "toy").replace("shop.", "toy.")
                exec(compile(code, program, "exec"), {"__name__": "__main__"})
                continue
            words = ["--dataset=toy" if word.startswith("--dataset") else word for word in words]
            before = set(Path("saved").glob("*/result.json"))
            keys = toy if name in ("LLaRA", "MyModel") else {**{key: toy[key] for key in STOCK}, "epochs": 1}
            Path("toy.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
            assert cli.main([*words, "--config_files=toy.yaml"]) == 0
            (result,) = set(Path("saved").glob("*/result.json")) - before
            runs.append((result.parent, json.loads(result.read_text(encoding="utf-8"))))
        return runs

    return run


def test_a_model_of_one_s_own(follow, monkeypatch):
    ((run, result),) = follow("model.md")
    assert result["model"] == "MyModel" and result["representation"] == "hybrid" and result["rec_model"] == "SASRec"
    steps = [json.loads(line) for line in (run / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["alignment_weight"] == 0.2 and config["epochs"] == 2 and config["strategy"] == "direct"
    assert all(step["alignment"] > 0 for step in steps if "alignment" in step) and "alignment" in json.dumps(steps)
    with pytest.raises(UserError, match=r"plugins to 'my_model.py'.* yourself: --plugins=my_model.py"):
        recbole_llara.load(run)
    loaded = recbole_llara.load(run, plugins=["my_model.py"])
    assert loaded.model.alignment_weight == 0.2 and len(loaded.recommend(["i1", "i2"], k=3)) == 3


def test_a_recommender_of_one_s_own_and_a_table_of_vectors(follow, tmp_path):
    (_, alone), (run, over), (by_table, result) = follow("recommender.md")
    assert alone["model"] == "MeanOfHistory" and over["rec_model"] == "MeanOfHistory"
    (cached,) = [path for path in (tmp_path / "saved" / "recommenders").iterdir() if path.is_dir()]
    assert cached.name.startswith("MeanOfHistory-toy-") and over["recommender"]["metrics"]["test"]["hit@1"] >= 0
    assert recbole_llara.load(run, plugins="my_recommender.py").model.item_tokens.item_embeddings.shape == (61, 32)

    assert result["rec_model"] == "vectors.npy" and result["recommender"]["metrics"] == {}
    meta = json.loads((by_table / "checkpoint" / "meta.json").read_text(encoding="utf-8"))
    assert meta["belongs_to"]["recommender_sha256"] == result["recommender"]["sha256"]
    loaded = recbole_llara.load(by_table)
    assert len(loaded.recommend(["i1", "i2"], k=3)) == 3


def test_prompts_of_one_s_own(follow, tmp_path):
    ((run, result),) = follow("prompt.md")
    loaded = recbole_llara.load(run)
    prompts = loaded.prompts([[1, 2]], torch.arange(1, 11)[None])
    text = loaded.model.tokenizer.decode(prompts.input_ids[0])
    assert "A customer has bought Title" in text and "One of these 10 articles is bought next:" in text

    (tmp_path / "others.yaml").write_text('templates: ["Seen {history}. Next among {candidates}:"]', encoding="utf-8")
    words = ["--model=LLaRA", "--dataset=toy", "--config_files=toy.yaml", f"--checkpoint={run}/checkpoint"]
    assert cli.main([*words, "--prompt_file=others.yaml", "--result_file=others.json"]) == 0
    assert cli.main([*words, "--prompt_file=my_prompts.yaml", "--result_file=same.json"]) == 0
    others, same = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("others.json", "same.json"))
    assert others["trained_under_other_prompts"] is True and others["prompts_digest"] != result["prompts_digest"]
    assert same["trained_under_other_prompts"] is False and same["prompts_digest"] == result["prompts_digest"]
    assert same["metrics"]["test"] == result["metrics"]["test"]

    export(run, tmp_path / "exported")
    (tmp_path / "my_prompts.yaml").unlink()
    moved = recbole_llara.load((tmp_path / "exported").rename(tmp_path / "moved"))
    assert moved.model.prompts_digest == result["prompts_digest"]
