"""Where an answer comes from: the numbers are those of asking again, what does not apply is None, and nothing of the run changes."""

import json
import math
from pathlib import Path

import pytest
import torch
from toy_run import STOCK_KEYS, toy_keys

import recbole_llara
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.prompt.representation import REPRESENTATIONS, SLOT_PARTS, Part
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.command import explain_main
from recbole_llara.serving.explain import explain
from recbole_llara.utils.errors import UserError

HISTORY = ["i3", "i4", "i5", "i9"]


@pytest.fixture(scope="module")
def make_loaded(tmp_path_factory, make_llm, make_tokenizer):
    """Trains toy runs of one folder, each once, and loads them."""
    folder = tmp_path_factory.mktemp("explained")
    keys = toy_keys(folder, make_llm, make_tokenizer) | {"max_train_rows": 16}
    made = {}

    def make(model="LLaRA", **changes):
        name = (model, *sorted(changes.items()))
        if name not in made:
            is_stock = model in ("SASRec", "Popularity")
            given = {key: keys[key] for key in STOCK_KEYS} | {"epochs": 1} if is_stock else keys
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                path = Path(run_recbole_llara(model, "toy", config_dict={**given, **changes})["run_dir"]).resolve()
                made[name] = path, recbole_llara.load(path, prefix_cache=0)  # what is kept of a prompt moves scores by rounding
        return made[name][1]

    make.folders = made
    return make


@pytest.fixture
def llara(make_loaded):
    """A loaded toy run of LLaRA."""
    return make_loaded()


def log_probs(found):
    """By item: the log-softmax of recommendations' scores."""
    logs = torch.tensor([item.score for item in found], dtype=torch.float64).log_softmax(0).tolist()
    return dict(zip([item.item_id for item in found], logs, strict=True))


def recommended(run, history, candidates=None):
    """What ``recommend`` says of all candidates, best first."""
    return run.recommend([f"id:{item}" for item in history], 10, candidates and [f"id:{item}" for item in candidates])


def as_asked(run, told):
    """The candidates that were proposed in the order in which the LLM is asked about them."""
    history = [run.names.find(f"id:{item['item_id']}") for item in told.history]
    items = torch.tensor([[run.names.find(f"id:{one.item_id}") for one in told.candidates]])
    return [run.names.ids[item] for item in run.listed([history], items)[0].tolist()]


def test_it_tells_what_recommend_ranks_by(llara):
    found, told = recommended(llara, HISTORY), explain(llara, HISTORY)
    assert told.item_id == found[0].item_id and (told.system, told.llm, told.recommender) == ("LLaRA", "LLaRA", "SASRec")
    assert [one.item_id for one in told.candidates] == [item.item_id for item in found]
    assert [one.answer.rank for one in told.candidates] == [item.rank for item in found]
    assert [one.unseen_rank for one in told.candidates] == [item.recommender_rank for item in found]
    expected = log_probs(found)
    items = torch.tensor([llara.names.find(f"id:{one.item_id}") for one in told.candidates])
    scores = llara.retriever.scores([[llara.names.find(item) for item in HISTORY]])[0]
    of_recommender = scores[items].double().log_softmax(0).tolist()
    for one, own in zip(told.candidates, of_recommender, strict=True):
        assert one.answer == one.llm and one.parts is None
        assert one.llm.log_prob == pytest.approx(expected[one.item_id], abs=1e-4)
        assert one.recommender.log_prob == pytest.approx(own, abs=1e-5)
        assert one.recommender.rank == 1 + sum(other > own for other in of_recommender)
    assert sum(math.exp(one.llm.log_prob) for one in told.candidates) == pytest.approx(1)
    assert told.unseen == llara.retriever.n_known - 1 - len(HISTORY)
    json.dumps(told.as_json())


def test_ranks_among_unseen_items_of_given_candidates(llara):
    told = explain(llara, HISTORY, candidates=["i7", "i3", "i20"], item="i20")
    scores = llara.retriever.scores([[llara.names.find(item) for item in HISTORY]])[0]
    seen = {llara.names.find(item) for item in HISTORY}
    ranks = {one.item_id: one.unseen_rank for one in told.candidates}
    for name in ("i7", "i20"):
        own = scores[llara.names.find(name)]
        better = [item for item in range(1, llara.retriever.n_known) if scores[item] > own and item not in seen]
        assert ranks[name] == 1 + len(better)
    assert ranks["i3"] is None  # it is in the history
    assert told.item_id == "i20"


@pytest.mark.parametrize("changes", [{}, {"fusion": "validation"}, {"user_token": True, "recommender_score_token": "rank"}])
def test_a_removal_is_the_shorter_history(changes, make_loaded):
    """Also of a history longer than is read: no older item comes in."""
    run = make_loaded(**changes)
    most = run.config["MAX_ITEM_LIST_LENGTH"]
    history = [f"i{item}" for item in range(10, 11 + most)]
    told = explain(run, history, k=most)
    read = history[1:]
    assert [one["item_id"] for one in told.history] == read and len(told.removals) == most
    changed = [abs(removal.answer.change) for removal in told.removals]
    assert changed == sorted(changed, reverse=True) and max(changed) > 0
    candidates = as_asked(run, told)
    whole, item = told.explained, told.item_id
    columns = [run.names.find(f"id:{one}") for one in candidates]
    for removal in told.removals:
        shorter = [one for place, one in enumerate(read, 1) if place != removal.position]
        assert removal.item_id == read[removal.position - 1]
        found = recommended(run, shorter, candidates)
        assert removal.answer.change == pytest.approx(log_probs(found)[item] - whole.answer.log_prob, abs=1e-4)
        assert removal.answer.rank == next(one.rank for one in found if one.item_id == item)
        scores = run.retriever.scores([[run.names.find(one) for one in shorter]])[0, columns].double().log_softmax(0)
        own = scores[candidates.index(item)]
        assert removal.recommender.change == pytest.approx(float(own) - whole.recommender.log_prob, abs=1e-5)
        assert removal.recommender.rank == 1 + int((scores > own).sum())
    assert (removal.llm == removal.answer) == (run.fusion is None)
    fewer = explain(run, history, k=2)
    assert [one.item_id for one in fewer.removals] == [one.item_id for one in told.removals[:2]]


def test_what_the_recommender_alone_tells_is_silenced_without_its_tokens(llara):
    """Another embedding of one candidate moves the LLM's answer, and not the one without behavioural tokens; [PH] the reverse."""
    before = explain(llara, HISTORY)
    item = llara.names.find(f"id:{before.item_id}")

    def moved(name, place):
        tokens = llara.model.item_tokens
        kept = getattr(tokens, name).data
        try:
            getattr(tokens, name).data = kept.clone()  # the recommender looks items up in the same table
            getattr(tokens, name).data[place] += 3.0
            return explain(llara, HISTORY, before.item_id)
        finally:
            getattr(tokens, name).data = kept

    by_vector, by_placeholder = moved("item_embeddings", item), moved("placeholder", ...)
    own = before.explained
    assert by_vector.explained.without_behavioural_tokens == own.without_behavioural_tokens
    assert abs(by_vector.explained.llm.log_prob - own.llm.log_prob) > 1e-3
    assert by_vector.explained.recommender == own.recommender
    assert by_placeholder.explained.llm == own.llm
    assert abs(by_placeholder.explained.without_behavioural_tokens.log_prob - own.without_behavioural_tokens.log_prob) > 1e-3
    assert explain(llara, HISTORY) == before


@pytest.mark.parametrize(
    "changes", [{}, {"user_token": True, "recommender_score_token": "rank", "candidate_order": "recommender"}]
)
def test_without_tokens_it_is_the_easy_task(changes, make_loaded, monkeypatch):
    run = make_loaded(**changes)
    told = explain(run, HISTORY)
    monkeypatch.setattr(run.model, "representation", REPRESENTATIONS["text_only"])
    expected = recommended(run, HISTORY, as_asked(run, told))
    assert {one.item_id: one.without_behavioural_tokens.rank for one in told.candidates} == {
        one.item_id: one.rank for one in expected
    }
    expected = log_probs(expected)
    for one in told.candidates:
        assert one.without_behavioural_tokens.log_prob == pytest.approx(expected[one.item_id], abs=1e-4)


def test_without_titles_the_history_is_tokens_alone(llara, monkeypatch):
    """What the LLM reads, row by row: as it is, four shorter histories, without behavioural tokens, without the history's titles."""
    read, embed = [], llara.model.embed
    monkeypatch.setattr(llara.model, "embed", lambda prompts: read.append(prompts) or embed(prompts))
    monkeypatch.setattr(llara.model, "settles_near_ties", False)
    told = explain(llara, HISTORY)
    (prompts,) = read
    texts = llara.model.tokenizer.batch_decode(prompts.input_ids)
    seen = [llara.names.titles[llara.names.find(item)].strip() for item in HISTORY]
    candidates = [one.title.strip() for one in told.candidates]
    assert len(texts) == 7
    for number, text in enumerate(texts):
        own = [place for place in range(4) if seen[place] in text]
        parts = {SLOT_PARTS[part] for part in prompts.slot_parts[prompts.slot_rows == number].tolist()}
        items = prompts.slot_items[prompts.slot_rows == number].tolist()
        assert all(title in text for title in candidates)
        assert parts == {Part.PLACEHOLDER if number == 5 else Part.ITEM_EMBEDDING}
        left_out = number - 1 if 1 <= number <= 4 else None
        assert own == ([] if number == 6 else [place for place in range(4) if place != left_out])
        if number != 5:
            expected = [llara.names.find(item) for place, item in enumerate(HISTORY) if place != left_out]
            assert items[: len(expected)] == expected and len(items) == len(expected) + len(candidates)


def test_parts_add_up_to_the_sum(make_loaded):
    run = make_loaded(fusion="validation")
    told, found = explain(run, HISTORY), recommended(run, HISTORY)
    assert told.system == "LLaRA + SASRec" and set(told.fusion.weights) == {"SASRec", "LLaRA"}
    assert told.fusion.temperature == run.fusion.temperature
    assert [one.item_id for one in told.candidates] == [item.item_id for item in found]
    mean = sum(one.answer.log_prob for one in told.candidates) / len(told.candidates)
    for one, item in zip(told.candidates, found, strict=True):
        assert one.answer.log_prob == pytest.approx(item.score, abs=1e-4)
        gave, leads = ([getattr(part, name) for part in one.parts.values()] for name in ("gave", "lead"))
        assert sum(gave) - told.fusion.normaliser == pytest.approx(one.answer.log_prob, abs=1e-9)
        assert sum(leads) == pytest.approx(one.answer.log_prob - mean, abs=1e-9)
        for name, own in (("SASRec", one.recommender), ("LLaRA", one.llm)):
            expected = told.fusion.weights[name] * own.log_prob / told.fusion.temperature
            assert one.parts[name].gave == pytest.approx(expected, abs=1e-9)


def test_a_stock_recommender_tells_its_own_part(make_loaded):
    run = make_loaded("SASRec")
    told, found = explain(run, HISTORY), recommended(run, HISTORY)
    expected = log_probs(found)
    assert told.llm is None and told.fusion is None and told.is_placeholder_trained is None and told.recommender == "SASRec"
    for one, item in zip(told.candidates, found, strict=True):
        assert one.item_id == item.item_id and one.answer == one.recommender
        assert one.answer.log_prob == pytest.approx(expected[one.item_id], abs=1e-6)
        assert one.llm is one.without_behavioural_tokens is one.without_history_titles is one.parts is None
    assert all(removal.llm is None and removal.answer == removal.recommender for removal in told.removals)
    popularity = explain(make_loaded("Popularity"), HISTORY)
    assert {removal.answer.change for removal in popularity.removals} == {0.0}  # it reads no history


@pytest.mark.parametrize(
    ("model", "changes", "applies"),
    [
        ("TALLRec", {}, (False, False)),
        ("ZeroShotLLM", {"epochs": 0, "rec_model": "SASRec"}, (False, False)),
        ("RSLLM", {"epochs": 2, "stage_1_epochs": 1, "strategy": "two_stage"}, (True, True)),
        ("LLaRA", {"representation": "behavioural"}, (False, False)),
        ("LLaRA", {"representation": "text_id"}, (False, True)),
    ],
)
def test_what_does_not_apply_is_none(model, changes, applies, make_loaded):
    told = explain(make_loaded(model, **changes), HISTORY)
    for one in told.candidates:
        assert (one.without_behavioural_tokens is not None, one.without_history_titles is not None) == applies
        assert one.llm is not None and one.recommender is not None
    assert len(told.removals) == 3
    assert told.is_placeholder_trained is (False if applies[0] else None)


def test_a_curriculum_trains_the_placeholder(make_loaded):
    assert explain(make_loaded(strategy="curriculum"), HISTORY).is_placeholder_trained is True


def test_a_history_of_one_item_has_nothing_to_leave_out(llara):
    told = explain(llara, ["i3"])
    assert told.removals is None and told.explained.llm.rank == 1


def test_nothing_of_the_run_changes(llara, monkeypatch):
    """Also where a pass fails: scores, weights, representation and random state are the same to the last bit."""
    candidates = torch.tensor([list(range(10, 20))])

    def state():
        weights = {name: value.clone() for name, value in llara.model.state_dict().items()}
        modes = [module.training for module in llara.model.modules()]
        scores = llara.scores([[3, 4, 5]], candidates)
        return weights, modes, llara.model.representation, torch.get_rng_state(), torch.is_autocast_enabled("cpu"), scores

    def is_same(one, other):
        same = one[0].keys() == other[0].keys() and all(torch.equal(value, other[0][name]) for name, value in one[0].items())
        return (
            same
            and one[1:3] == other[1:3]
            and torch.equal(one[3], other[3])
            and one[4] == other[4]
            and torch.equal(one[5], other[5])
        )

    before = state()
    explain(llara, HISTORY)
    assert is_same(before, state())
    calls, read = [], llara.model.read_answers

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return read(*arguments)

    monkeypatch.setattr(llara, "batch_size", 1)
    monkeypatch.setattr(llara.model, "read_answers", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        explain(llara, HISTORY)
    monkeypatch.undo()
    assert len(calls) == 3 and is_same(before, state())


@pytest.mark.parametrize(("batch_size", "expected"), [(64, 1), (7, 1), (3, 3), (1, 7)])
def test_the_llm_is_passed_as_seldom_as_the_batch_allows(batch_size, expected, llara, monkeypatch):
    """Seven prompts: as it is, without each of four items, without tokens, without titles."""
    monkeypatch.setattr(llara, "batch_size", batch_size)
    monkeypatch.setattr(llara.model, "settles_near_ties", False)
    passes = []
    hook = causal_lm(llara.model.llm).register_forward_hook(lambda *_: passes.append(1))
    try:
        explain(llara, HISTORY)
    finally:
        hook.remove()
    assert len(passes) == expected


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"history": []}, "history: found \\[\\], expected a list of at least one"),
        ({"history": ["Titel 3 é"]}, "no item is called 'Titel 3 é'; did you mean"),
        ({"history": ["i1"], "k": 0}, "k: found 0, expected a whole number"),
        ({"history": ["i1"], "k": True}, "k: found True, expected a whole number"),
        ({"history": ["i1"], "retrieve_k": 61}, "retrieve_k: found 61, but there are 60 items"),
        ({"history": ["i1"], "candidates": ["i2", "i2"]}, "candidates: found 1 items twice"),
        ({"history": ["i1"], "candidates": ["i2", "i3"], "item": "i4"}, "item: 'Title 4 é' is not among the 2 candidates"),
        ({"history": ["i1"], "item": "i1"}, "item: 'Title 1 é' is not among the 10 that the recommender proposes.*retrieve_k"),
        ({"history": ["i1"], "item": "nothing"}, "no item is called 'nothing'"),
        ({"history": [f"i{item}" for item in range(60)]}, "history: it holds every item"),
    ],
)
def test_wrong_questions(question, message, llara):
    with pytest.raises(UserError, match=message):
        explain(llara, **question)


@pytest.mark.parametrize(("model", "changes"), [("LLaRA", {"fusion": "validation"}), ("SASRec", {}), ("TALLRec", {})])
def test_the_command_line(model, changes, make_loaded, capsys, monkeypatch):
    told = explain(make_loaded(model, **changes), HISTORY, k=2)
    (folder, _) = make_loaded.folders[(model, *sorted(changes.items()))]
    monkeypatch.chdir(folder.parents[1])
    words = [f"--run={folder}", "--history", *HISTORY, "--k=2"]
    assert explain_main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["item_id"] == told.item_id and len(printed["removals"]) == 2 and len(printed["candidates"]) == 10
    own = printed["candidates"][0]
    assert own["answer"]["log_prob"] == pytest.approx(told.explained.answer.log_prob, abs=1e-6)
    assert (own["llm"] is None) == (model == "SASRec") and (own["parts"] is None) == (told.fusion is None)
    assert set(printed["meanings"]) == set(told.as_json()["meanings"])
    assert explain_main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{told.system}: {told.explained.title} (id {told.item_id}) has rank 1 of 10 candidates\n")
    assert f"{told.explained.answer.log_prob:.3f}" in text and f"among {told.unseen} unseen items" in text
    assert all(f"{removal.position}. {removal.title}" in text for removal in told.removals)
    assert ("part of the sum" in text) == (told.fusion is not None)
    assert ("without behavioural tokens" in text) == (model != "SASRec")
    assert ("does not apply" in text) == (model == "TALLRec")
    other = told.candidates[3].item_id
    assert explain_main([*words, "--item", f"id:{other}"]) == 0
    assert f"(id {other}) has rank 4 of 10" in capsys.readouterr().out
    assert explain_main([*words, "--candidates", "i20", "i21", "--item", "i22"]) == 2
    assert "item: 'Title 22 é' is not among the 2 candidates" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        explain_main([f"--run={folder}"])


def test_meanings_are_of_fields_that_are_there(llara):
    told = explain(llara, HISTORY).as_json()
    assert set(told["meanings"]) <= {*told, *told["candidates"][0], *told["candidates"][0]["llm"]}
    assert "parts" not in told["meanings"] and told["meanings"]["removals"]
