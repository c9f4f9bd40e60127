"""What a checkpoint keeps is taken where it fits, and made anew where tokenizer, prompts or LLM are others: the same answers either way."""

import json
from pathlib import Path

import pytest

from recbole_llara.llm.probe import Probe
from recbole_llara.prompt import item_tokeniser
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import UserError

HISTORY = ["i1", "i2", "i5"]


@pytest.fixture
def counted(monkeypatch):
    """How often an LLM was tried and a catalogue tokenised."""
    calls = {"tried": 0, "tokenised": 0}
    run, tokenise = Probe.run, item_tokeniser.tokenise_items

    def tried(self, generates):
        calls["tried"] += 1
        return run(self, generates)

    def tokenised(tokenizer, texts, *rest):
        calls["tokenised"] += len(texts) > 50
        return tokenise(tokenizer, texts, *rest)

    monkeypatch.setattr(Probe, "run", tried)
    monkeypatch.setattr(item_tokeniser, "tokenise_items", tokenised)
    return calls


def answers(run, **keys):
    return load(run, **keys).recommend(HISTORY, k=10)


def test_nothing_is_made_twice_and_everything_where_it_is_another(keys, counted):
    run = Path(run_recbole_llara("LLaRA", "toy", config_dict=keys)["run_dir"])
    counted.update(tried=0, tokenised=0)
    kept = answers(run)
    assert counted == {"tried": 0, "tokenised": 0}
    # Other prompts: texts are tokenised, and the LLM is tried with the longest prompt that they make.
    answers(run, max_title_tokens=2)
    assert counted == {"tried": 1, "tokenised": 1}
    answers(run, candidate_num=4)
    assert counted == {"tried": 2, "tokenised": 2}
    # Another version of a library: the same tokens, tried again.
    meta = json.loads((run / "checkpoint" / "meta.json").read_text(encoding="utf-8"))
    meta["probe"]["versions"]["torch"] = "0.1"
    (run / "checkpoint" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert answers(run) == kept and counted == {"tried": 3, "tokenised": 2}
    # A reader that nobody knows.
    meta["probe"]["reader"] = "os.system"
    (run / "checkpoint" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert answers(run) == kept and counted == {"tried": 4, "tokenised": 2}


def test_another_configuration_of_the_llm_is_tried_again(keys, counted):
    run = Path(run_recbole_llara("LLaRA", "toy", config_dict=keys)["run_dir"])
    counted.update(tried=0, tokenised=0)
    config = Path(keys["llm_path"]) / "config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**told, "rms_norm_eps": 1e-4}), encoding="utf-8")
    answers(run)
    assert counted == {"tried": 1, "tokenised": 0}


def test_pieces_that_were_altered_are_refused(keys):
    run = Path(run_recbole_llara("LLaRA", "toy", config_dict=keys)["run_dir"])
    path = run / "checkpoint" / "item_pieces.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"item_pieces.safetensors is missing or was altered"):
        load(run)
    path.unlink()
    with pytest.raises(UserError, match=r"item_pieces.safetensors is missing or was altered"):
        load(run)
