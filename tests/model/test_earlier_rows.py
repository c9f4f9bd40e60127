"""Runs whose LLM is tuned on rows that the recommender of training has not learned from."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_run import stopped_run

import recbole_llara
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import CANDIDATE_FIELD, ROW_FIELD, prepare_data
from recbole_llara.llm.item_tokens import centred
from recbole_llara.model import reading
from recbole_llara.prompt.representation import SLOT_PARTS, Part
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender import frozen
from recbole_llara.recommender.conclusions import Concluding
from recbole_llara.recommender.frozen import prepare_recommender, recommender_model
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

EARLIER = {"recommender_rows": "earlier", "rec_epochs": 2}
BOTH = {"user_token": True, "recommender_score_token": "log_prob"}
ROW = ("user_id", "item_id", "item_id_list")
DRAWN = {"candidate_draw": "recommender", "candidate_draw_top": 15}


def result_of(told):
    return json.loads(Path(told["result_file"]).read_text(encoding="utf-8"))


def cases_of(told):
    return Path(told["cases_file"]).read_text(encoding="utf-8")


@pytest.fixture
def learned(monkeypatch):
    """Of every recommender that is trained: all that it reads, as (user, item), and its weights before and after."""
    trainings, train = [], frozen.train_stock

    def noted(config, model, data, weights):
        seen = set()
        for batch in data.train_data:
            for user, target, items in zip(*(batch[name].tolist() for name in ROW), strict=True):
                seen |= {(user, item) for item in [target, *items] if item}
        start = {name: value.clone() for name, value in model.named_parameters()}
        told = train(config, model, data, weights)
        trainings.append((seen, start, {name: value.detach().clone() for name, value in model.named_parameters()}))
        return told

    monkeypatch.setattr(frozen, "train_stock", noted)
    return trainings


def test_the_recommender_of_training_never_meets_what_the_llm_is_tuned_on(keys, make_trainer, learned):
    trainer, data = make_trainer({**keys, **EARLIER, **BOTH, **DRAWN, "max_train_rows": 0})
    (of_earlier, _, weights), (of_all, start, _) = learned
    asked = set(zip(data.dataset.inter_feat["user_id"].tolist(), data.dataset.inter_feat["item_id"].tolist(), strict=True))
    assert len(asked) == len(data.dataset) == 80  # two of nine rows of 40 users
    assert not asked & of_earlier and asked <= of_all
    assert len(of_earlier) == 40 * 8 and len(of_all) == 40 * 10  # of twelve interactions, the last two are asked
    assert start.keys() == weights.keys() and all(torch.equal(start[name], weights[name]) for name in start)
    assert trainer.model.proposing.sha256 == trainer.model.recommender_of_training.sha256


def test_training_and_answers_read_tables_of_their_own(keys, make_trainer):
    trainer, data = make_trainer({**keys, **EARLIER, **BOTH})
    model, batch = trainer.model, next(iter(data.test_data))[0]
    history, candidates = batch["item_id_list"], batch[CANDIDATE_FIELD]
    prompts = model.encode_training(model.training_rows(next(iter(data.train_data)), 0), model.representation)
    of_items, seen = prompts.slot_parts == SLOT_PARTS.index(Part.ITEM_EMBEDDING), {}
    for mode in (True, False):
        recommender, network, _ = recommender_model(trainer.config, data, of_training=mode)
        assert (model.recommender_of_training if mode else model.recommender).sha256 == recommender.sha256
        model.train(mode)
        asked = {"item_id_list": history, "item_length": batch["item_length"], "user_id": torch.zeros_like(batch["user_id"])}
        with torch.no_grad():
            scores = network.full_sort_predict(asked).view(len(history), -1)
        log_probs = scores.gather(1, candidates).log_softmax(1)
        assert torch.allclose(model.conclude(history, candidates).log_probs, log_probs, atol=1e-5)
        seen[mode] = model.embed(prompts).inputs_embeds[prompts.slot_rows, prompts.slot_columns].detach()  # [S, D]
        items = centred(recommender.item_embeddings)[prompts.slot_items[of_items]]
        assert torch.allclose(seen[mode][of_items], model.item_tokens.projector(items), atol=1e-5)
    for part in (Part.ITEM_EMBEDDING, Part.USER, Part.SCORE):
        own = prompts.slot_parts == SLOT_PARTS.index(part)
        assert own.any() and not torch.allclose(seen[True][own], seen[False][own])


def test_validation_within_training_is_answered_as_a_test_is(keys, make_trainer, monkeypatch):
    trainer, data = make_trainer({**keys, **EARLIER, **BOTH, "epochs": 2})
    model, call, asked = trainer.model, Concluding.__call__, []

    def noted(self, *rows):
        table = self.model.item_embedding.weight[: len(model.recommender.item_embeddings)]
        own = model.recommender_of_training if model.training else model.recommender
        asked.append((model.training, torch.equal(table, own.item_embeddings)))
        return call(self, *rows)

    monkeypatch.setattr(Concluding, "__call__", noted)
    trainer.fit(data.train_data, data.valid_data, saved=False)
    assert set(asked) == {(True, True), (False, True)}


def test_rows_keep_their_numbers_and_draws(keys):
    """A later row has the candidates that it has among all rows, and max_train_rows takes some of the later ones."""
    everything = prepare_data(RunConfig("LLaRA", "toy", config_dict={**keys, "max_train_rows": 0}))
    later = prepare_data(RunConfig("LLaRA", "toy", config_dict={**keys, **EARLIER, "max_train_rows": 0}))
    some = prepare_data(RunConfig("LLaRA", "toy", config_dict={**keys, **EARLIER, "max_train_rows": 48}))

    def drawn(data):
        feat = data.dataset.inter_feat
        rows = data.dataset.rows_of(feat)
        found = data.sampler.draw(feat[ROW_FIELD].numpy(), rows, "train", 3)
        return dict(zip(feat[ROW_FIELD].tolist(), found.tolist(), strict=True))

    of_all, of_later, of_some = map(drawn, (everything, later, some))
    assert (len(of_all), len(of_later), len(of_some)) == (360, 80, 48)
    assert of_later.items() <= of_all.items() and of_some.items() <= of_later.items()
    assert everything.candidate_sha256 == later.candidate_sha256


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("LLaRA", {"full_rank": True, "retrieve_k": 10, "fusion": "validation"}),
        ("LLaRA", {"recommender_at_test": "earlier", "protocol": "llara"}),
        ("RSLLM", {"strategy": "two_stage", "stage_1_epochs": 1, "epochs": 2}),
        ("TALLRec", {**DRAWN, "full_rank": True}),
    ],
)
def test_a_run_and_what_is_loaded_of_it(keys, tmp_path, model, more, learned):
    told = run_recbole_llara(model, "toy", config_dict={**keys, **EARLIER, **({} if model == "TALLRec" else BOTH), **more})
    result, count = result_of(told), len(learned)
    at_test = more.get("recommender_at_test", "all")
    assert count == (1 if at_test == "earlier" else 2)
    of_training = result.get("recommender_of_training") or result.get("proposing")
    if at_test == "all":
        assert of_training["sha256"] != result["recommender"]["sha256"]
    if "recommender_of_training" in result:
        assert set(result["recommender_drift"]) == {"cosine", "same_neighbours"}
    loaded = recbole_llara.load(told["run_dir"])
    assert len(learned) == count  # nothing is trained for it
    assert loaded.recommender.sha256 == result["recommender"]["sha256"]
    cases = [json.loads(line) for line in cases_of(told).splitlines()]
    histories = [loaded.items("history", case["history"]) for case in cases]
    candidates = torch.tensor([loaded.items("candidates", case["candidates"]) for case in cases])
    scores = loaded.scores(histories, candidates)
    assert torch.allclose(scores.float(), torch.tensor([case["scores"] for case in cases]), atol=1e-3)
    shipped = recbole_llara.load(export(told["run_dir"], tmp_path / "shipped"))
    assert shipped.recommender.sha256 == loaded.recommender.sha256
    assert Path(shipped.config["rec_checkpoint"]).is_relative_to(tmp_path / "shipped")
    assert torch.equal(shipped.scores(histories, candidates), scores)
    # Its checkpoint is evaluated anew, by the recommender of the cache and by its name.
    given = {"rec_checkpoint": result["recommender"]["path"]}
    for own in ({}, given):
        values = {**keys, **EARLIER, **({} if model == "TALLRec" else BOTH), **more, "checkpoint": told["checkpoint"], **own}
        again = run_recbole_llara(model, "toy", config_dict=values)
        assert cases_of(again) == cases_of(told) and result_of(again)["trained_on_other_rows"] == []
    assert len(learned) == count


def test_one_that_answers_by_another_recommender_is_refused(keys):
    told = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **EARLIER})
    for other in ({"recommender_rows": "all"}, {"recommender_at_test": "earlier"}, {"later_rows_share": 0.4}):
        with pytest.raises(UserError, match="recommender_sha256"):
            run_recbole_llara("LLaRA", "toy", config_dict={**keys, **EARLIER, **other, "checkpoint": told["checkpoint"]})


def test_a_run_that_goes_on_ends_the_same(keys, monkeypatch, tmp_path):
    keys = {**keys, **EARLIER, **BOTH, **DRAWN, "save_steps": 1}
    run = stopped_run(keys, 1, monkeypatch)
    resumed = run_recbole_llara(config_dict={"resume": str(run)})
    whole = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    assert cases_of(resumed) == cases_of(whole)


def test_a_run_does_not_go_on_with_another_recommender_of_training(keys, monkeypatch):
    run = stopped_run({**keys, **EARLIER, "save_steps": 1}, 1, monkeypatch)

    def altered(config, data, of_training=False):
        recommender, *rest = recommender_model(config, data, of_training)
        return replace(recommender, sha256="0" * 64) if of_training else recommender, *rest

    monkeypatch.setattr(reading, "recommender_model", altered)
    with pytest.raises(UserError, match="are not those that"):
        run_recbole_llara(config_dict={"resume": str(run)})


def test_the_cache_keeps_both(keys, learned):
    config = RunConfig("LLaRA", "toy", config_dict={**keys, **EARLIER})
    data = prepare_data(config)
    of_training, answering = recommender_model(config, data, of_training=True)[0], prepare_recommender(config, data)
    assert len(learned) == 2 and of_training.path != answering.path
    assert recommender_model(config, data, of_training=True)[0].sha256 == of_training.sha256
    assert prepare_recommender(config, data).sha256 == answering.sha256 and len(learned) == 2
    plain = RunConfig("LLaRA", "toy", config_dict={**keys, "rec_epochs": 2})
    alone = prepare_recommender(plain, prepare_data(plain))
    assert len(learned) == 3 and alone.sha256 not in (of_training.sha256, answering.sha256)
    other = RunConfig("LLaRA", "toy", config_dict={**keys, **EARLIER, "later_rows_share": 0.4})
    prepare_recommender(other, prepare_data(other))
    assert len(learned) == 5
    tested = RunConfig("LLaRA", "toy", config_dict={**keys, **EARLIER, "recommender_at_test": "earlier"})
    assert prepare_recommender(tested, prepare_data(tested)).sha256 == of_training.sha256


@pytest.mark.parametrize("more", [{}, {"recommender_at_test": "earlier"}, {"representation": "textual", **DRAWN}])
def test_items_of_later_rows_alone_are_told(keys, make_trainer, tmp_path, caplog, more):
    """An item that one user takes last of all training rows, and nobody before."""
    path = tmp_path / "toy" / "toy.inter"
    lines = path.read_text(encoding="utf-8").splitlines()
    place = next(number for number, line in enumerate(lines) if line.endswith("\t9"))  # user 0, the last training row
    user, _, time = lines[place].split("\t")
    lines[place] = f"{user}\ti60\t{time}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (tmp_path / "toy" / "toy.item").open("a", encoding="utf-8") as file:
        file.write("i60\tOnly once\n")
    with caplog.at_level(logging.INFO):
        trainer, data = make_trainer({**keys, **EARLIER, **more})
    assert recommender_model(trainer.config, data, of_training=True)[0].unlearned_items == 1
    (told,) = [line for line in caplog.messages if line.startswith("recommender_rows earlier")]
    assert "for which 1 items that occur in later rows only are new" in told and ("drift" in told) == (more == {})


def test_with_all_nothing_is_read_of_it(keys, make_trainer, learned):
    trainer, data = make_trainer({**keys, **BOTH, "later_rows_share": 0.4, "recommender_at_test": "earlier"})
    model = trainer.model
    assert len(learned) == 1 and len(data.dataset) == 48 and model.recommender_of_training is None
    assert model.item_tokens.training_embeddings is None and model.train().conclude is model.eval().conclude
    assert "recommender_drift" not in model.result_fields()


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("TALLRec", {}, "recommender_rows: found earlier with representation textual and candidate_draw uniform"),
        (
            "LLaRA",
            {"representation": "textual", "strategy": "direct"},
            "recommender_rows: found earlier with representation textual",
        ),
        ("LLaRA", {"item_embeddings": "random"}, "recommender_rows: found 'earlier' with item_embeddings 'random'"),
        (
            "LLaRA",
            {"rec_checkpoint": "some.safetensors"},
            "recommender_rows: found earlier with rec_checkpoint some.safetensors",
        ),
        ("LLaRA", {"protocol": "windows"}, "recommender_rows: found earlier with protocol windows"),
        ("LLaRA", {"recommender_rows": "later"}, "recommender_rows: found 'later', expected one of all, earlier"),
        ("LLaRA", {"later_rows_share": 1.0}, "later_rows_share: found 1.0"),
        ("LLaRA", {"rec_model": "Popularity"}, "rec_model: found 'Popularity'"),
        ("LLaRA", {"rec_model": "MoRec"}, "rec_model: found 'MoRec'"),
    ],
)
def test_where_it_cannot_be(keys, tmp_path, model, changes, said, learned):
    for name in ("train", "valid", "test"):
        shutil.copyfile(tmp_path / "toy" / "toy.inter", tmp_path / "toy" / f"toy.{name}.inter")
    with pytest.raises(UserError, match=said):
        run_recbole_llara(model, "toy", config_dict={**keys, **EARLIER, **changes})
    assert not learned


def test_users_of_one_training_row_leave_nothing_to_tune_on(keys, tmp_path):
    path = tmp_path / "toy" / "toy.inter"
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if int(line.split("\t")[2]) % 1000 < 4]
    path.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="none of the 40 users has two training rows"):
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, **EARLIER})
