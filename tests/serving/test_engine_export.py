"""A run whose LLM holds its items in the vocabulary: transformers alone, and a server of vLLM's API, give the run's scores."""

import pytest
import torch
from engine_server import engine
from transformers import AutoModelForCausalLM

import recbole_llara
from recbole_llara.model.engine_client import FOLDER, Served
from recbole_llara.prompt.representation import SLOT_PARTS
from recbole_llara.serving.explain import explain
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

HISTORIES = [["i1", "i2", "i3"], ["i7"], ["i11", "i5", "i9", "i30", "i2", "i4"]]


def plain_scores(folder, run, history, candidates):
    """Log-likelihoods by transformers alone: the exported LLM, prompts of token ids, a pass for each answer."""
    told, llm = Served.read(folder / FOLDER), AutoModelForCausalLM.from_pretrained(folder / FOLDER, dtype=torch.float32).eval()
    prompts = run.prompts([history], torch.tensor([candidates]))
    ids = prompts.input_ids[0].clone()
    for column, number, item in zip(
        prompts.slot_columns.tolist(), prompts.slot_parts.tolist(), prompts.slot_items.tolist(), strict=True
    ):
        name = SLOT_PARTS[number].value
        ids[column] = told.vocabulary + told.slots.first[name] + (item if name in ("item_embedding", "item_id") else 0)
    scores = []
    for answer in run.model.encoder.answer_ids(torch.tensor([candidates]), run.model.representation, prompts.listed)[0]:
        answer = answer[answer != -100]
        with torch.no_grad():
            logits = llm(input_ids=torch.cat([ids, answer])[None]).logits[0, len(ids) - 1 : -1]
        # The items' own tokens are no answers: a softmax over the others is the LLM's as it was.
        log_probs = logits[:, : told.vocabulary].log_softmax(1)
        scores.append(float(log_probs.gather(1, answer[:, None]).sum()))
    return scores


RUNS = {
    "LLaRA": ("LLaRA", {}),
    "LLaRA with two stages": ("LLaRA", {"strategy": "curriculum", "epochs": 2}),
    "LLaRA with ranks": ("LLaRA", {"recommender_score_token": "rank", "candidate_order": "recommender"}),
    "LLaRA with letters": ("LLaRA", {"answer_form": "letter", "llm_path": "tiny", "candidate_order": "recommender"}),
    "LLaRA tuned whole": ("LLaRA", {"llm_tuning": "full"}),
    "LLaRA with eval_template all": ("LLaRA", {"eval_template": "all"}),
    "TALLRec": ("TALLRec", {}),
    "RSLLM": ("RSLLM", {"epochs": 2, "stage_1_epochs": 1, "strategy": "two_stage", "train_batch_size": 8}),
    "ZeroShotLLM": ("ZeroShotLLM", {"epochs": 0, "strategy": "direct", "llm_tuning": "frozen"}),
}


@pytest.fixture
def make(keys):
    from recbole_llara.quick_start import run_recbole_llara

    return lambda model, **changes: run_recbole_llara(model, "toy", config_dict={**keys, **changes})["run_dir"]


@pytest.mark.parametrize("name", RUNS)
def test_a_server_ranks_as_the_run_does(name, make, tmp_path):
    model, changes = RUNS[name]
    folder = make(model, **changes)
    local = recbole_llara.load(folder)
    out = export(folder, tmp_path / "out", engine="vllm")
    told = Served.read(out / FOLDER)
    with engine(out / FOLDER, told.name) as server:
        remote = recbole_llara.load(out, backend="vllm", backend_url=server.url)
        for history in HISTORIES:
            here, there = (run.recommend(history, k=10) for run in (local, remote))
            assert [item.item_id for item in there] == [item.item_id for item in here]
            assert [item.score for item in there] == pytest.approx([item.score for item in here], abs=2e-4)
            assert [item.recommender_rank for item in there] == [item.recommender_rank for item in here]
        given = [["i3", "i4", "i5"], ["i6", "i8", "i9"], ["i10", "i12", "i13"]]
        here, there = (run.recommend_batch(HISTORIES, k=3, candidates=given) for run in (local, remote))
        assert [[item.item_id for item in row] for row in there] == [[item.item_id for item in row] for row in here]
        history, candidates = local.items("history", ["i1", "i2"]), torch.tensor([local.items("candidates", given[0])])
        assert remote.write([history], candidates).texts == local.write([history], candidates).texts
    assert told.rows == 0 or all(max(map(max, body["prompt"])) < told.vocabulary + told.rows for body in server.seen)


@pytest.mark.parametrize("name", ["LLaRA", "TALLRec", "RSLLM"])
def test_transformers_alone_gives_the_runs_scores(name, make, tmp_path):
    model, changes = RUNS[name]
    folder = make(model, **changes)
    run = recbole_llara.load(folder)
    out = export(folder, tmp_path / "out", engine="vllm")
    history, candidates = run.items("history", ["i1", "i2", "i3"]), run.items("candidates", ["i4", "i5", "i6", "i7"])
    expected = run.scores([history], torch.tensor([candidates]))[0].tolist()
    assert plain_scores(out, run, history, candidates) == pytest.approx(expected, abs=2e-4)


def test_the_exported_run_also_answers_by_itself(make, tmp_path):
    folder = make("LLaRA")
    out = export(folder, tmp_path / "out", engine="vllm")
    expected = recbole_llara.load(folder).recommend(["i1"], k=5)
    found = recbole_llara.load(out).recommend(["i1"], k=5)
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-5)


def test_vectors_of_a_question_are_no_tokens(make, tmp_path):
    for changes, message in (
        ({"user_token": True}, "user_token: found True, whose vector is made anew"),
        ({"recommender_score_token": "log_prob"}, "recommender_score_token: found log_prob"),
    ):
        with pytest.raises(UserError, match=message):
            export(make("LLaRA", **changes), tmp_path / "out", engine="vllm")
        assert not (tmp_path / "out").exists()


def test_a_training_run_asks_no_server(make):
    with pytest.raises(UserError, match="backend: found vllm for a run that trains or measures, expected local"):
        make("LLaRA", backend="vllm")


def test_explanations_are_the_runs(make, tmp_path):
    out = export(make("LLaRA", strategy="curriculum", epochs=2), tmp_path / "out", engine="vllm")
    with engine(out / FOLDER, Served.read(out / FOLDER).name) as server:
        remote = recbole_llara.load(out, backend="vllm", backend_url=server.url)
        here, there = (explain(run, ["i1", "i2", "i3"]).as_json() for run in (recbole_llara.load(out), remote))
    assert flat(there).keys() == flat(here).keys() and len(flat(here)) > 30
    for place, value in flat(here).items():
        assert flat(there)[place] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), place


def flat(told, place=""):
    """Every value of nested JSON by where it stands."""
    if isinstance(told, dict | list):
        pairs = told.items() if isinstance(told, dict) else enumerate(told)
        return {key: value for name, part in pairs for key, value in flat(part, f"{place}/{name}").items()}
    return {place: told}
