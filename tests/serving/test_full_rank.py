"""Retrieval and re-ranking over the whole catalogue, against plain loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.data.dataset import prepare_data
from recbole_llara.serving.full_rank import FullRanks, full_rank_result, rank_test_rows
from recbole_llara.serving.loaded import LoadedRun, load
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import Processes


def with_data(run):
    """A loaded run beside its data, as a run has it that ranks the catalogue for its test rows."""
    return LoadedRun(run.config, prepare_data(run.config, run.data.dataset.snapshot.numbering), run.model)


@pytest.mark.parametrize("model", ["LLaRA", "SASRec", "Caser", "Popularity", "EASE"])
def test_places_are_those_of_a_plain_loop(model, make_run):
    folder = Path(make_run(model, protocol="leave_one_out", full_rank=True, retrieve_k=7, topk=[1, 5, 10]))
    run = with_data(load(folder))
    records = read_records(folder / "full_rank.jsonl")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))["full_rank"]
    assert result["n"] == len(records) == len(read_records(folder / "cases.jsonl"))
    lines = (Path(run.config["data_path"]) / "toy.inter").read_text(encoding="utf-8").splitlines()[1:]
    watched: dict[str, list[str]] = {}
    for line in sorted(lines, key=lambda line: float(line.split("\t")[2])):
        user, item, _ = line.split("\t")
        watched.setdefault(user, []).append(item)
    cases = {case["row"]: case for case in read_records(folder / "cases.jsonl")}
    hits = 0
    for record in records:
        case = cases[record["row"]]
        *before, last = watched[case["user"]]
        assert record["target"] == last == case["target"]
        seen = [run.names.find(f"id:{item}") for item in before if item != last]
        user = run.data.dataset.field2token_id["user_id"][case["user"]]
        history = [run.names.find(f"id:{item}") for item in case["history"]]
        scores = run.retriever.scores([history], [user])[0].tolist()
        ranked = sorted((item for item in range(1, run.retriever.n_known) if item not in seen), key=lambda item: -scores[item])
        place = ranked.index(run.names.find(f"id:{last}")) + 1
        assert record["retriever"] == (place if place <= 10 else None) or model == "Popularity"  # whose scores tie
        if model == "LLaRA" and place <= 7:
            listed = run.listed([history], torch.tensor([ranked[:7]]))[0].tolist()  # prompts show them so
            head = [run.names.ids[item] for item in listed]
            found = run.recommend([f"id:{item}" for item in case["history"]], k=7, candidates=[f"id:{item}" for item in head])
            assert record["reranker"] == next(item.rank for item in found if item.item_id == last)
        elif model == "LLaRA":
            assert record["reranker"] == record["retriever"]  # nothing behind the proposed items moves
        hits += place <= 5
    if model != "Popularity":
        assert result["retriever"]["hit@5"]["share"] == pytest.approx(hits / len(records))
    if model != "LLaRA":
        assert all(record["retriever"] == record["reranker"] for record in records)
        assert result["gain"]["hit@5"] == {"mean": 0.0, "low": None, "high": None, "p_value": None}


def test_numbers_by_hand():
    """Places 1, 3 and beyond by the retriever, 2, 1 and beyond by the re-ranker."""
    ranks = FullRanks(np.arange(3), np.arange(1, 4), np.array([1, 3, 0]), np.array([2, 1, 0]), retrieve_k=3)
    result = full_rank_result(ranks, [1, 3])
    assert result["retriever"]["hit@1"]["share"] == result["reranker"]["hit@1"]["share"] == pytest.approx(1 / 3)
    assert result["retriever"]["ndcg@3"]["share"] == pytest.approx((1 + 1 / math.log2(4)) / 3)
    assert result["reranker"]["ndcg@3"]["share"] == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert result["gain"]["ndcg@3"]["mean"] == pytest.approx((1 / math.log2(3) - 1 / math.log2(4)) / 3)
    assert result["target_proposed"]["share"] == pytest.approx(2 / 3)
    assert result["gain"]["hit@3"] == {"mean": 0.0, "low": None, "high": None, "p_value": None}


def test_what_ranks_nothing_is_refused(make_run):
    with pytest.raises(UserError, match="full_rank: found True with decoding 'generate'"):
        make_run(protocol="leave_one_out", full_rank=True, decoding="generate")


def test_more_than_there_is(run):
    ranks = rank_test_rows(with_data(run), retrieve_k=10_000, depth=20, processes=Processes())
    assert (ranks.reranker > 0).all() and (ranks.reranker < run.retriever.n_known).all()


def test_a_finished_run_of_the_same_split_is_measured_without_training(make_run):
    folder = Path(make_run())
    again = Path(make_run(protocol="leave_one_out", full_rank=True, checkpoint=str(folder / "checkpoint")))
    before, after = (json.loads((path / "result.json").read_text(encoding="utf-8")) for path in (folder, again))
    assert before["metrics"]["test"] == after["metrics"]["test"] and after["full_rank"]["n"] == before["n"]
    assert "training_seconds" not in after["timings"]
    with pytest.raises(UserError, match="split: 'leave_one_out' there, 'user_time' here"):
        make_run(protocol="llara", checkpoint=str(folder / "checkpoint"))


def test_only_what_came_before_a_row_is_left_out(make_run):
    """Under a ratio split the items of a user's later test rows are proposed for its earlier ones."""
    split = {"split": {"RS": [0.5, 0.2, 0.3]}, "group_by": "user", "order": "TO", "mode": "full"}
    folder = Path(make_run("SASRec", protocol="leave_one_out", full_rank=True, eval_args=split, topk=[1, 5, 10]))
    run = with_data(load(folder))
    dataset = run.data.test_data.dataset
    feat = dataset.inter_feat
    watched: dict[str, list[str]] = {}
    for line in (Path(run.config["data_path"]) / "toy.inter").read_text(encoding="utf-8").splitlines()[1:]:
        user, item, _ = line.split("\t")  # the file is in the order of time
        watched.setdefault(user, []).append(item)
    records = {record["row"]: record["retriever"] for record in read_records(folder / "full_rank.jsonl")}
    rows_of_user: dict[int, int] = {}
    differ = 0
    for row, user, target, history, length in zip(
        *(feat[name].tolist() for name in ("row_id", "user_id", "item_id", "item_id_list", "item_length")), strict=True
    ):
        rows_of_user[user] = rows_of_user.get(user, 0) + 1
        sequence = [run.names.find(f"id:{item}") for item in watched[dataset.id2token("user_id", user)]]
        before, later = sequence[: sequence.index(target)], sequence[sequence.index(target) + 1 :]
        assert before[-length:] == history[:length]
        scores = run.retriever.scores([history[:length]], [user])[0].tolist()

        def place(left_out, scores=scores, target=target):
            ranked = sorted(
                (item for item in range(1, run.retriever.n_known) if item not in left_out), key=lambda i: -scores[i]
            )
            return ranked.index(target) + 1

        expected = place(before)
        assert records[row] == (expected if expected <= 20 else None)
        differ += place(before + later) != expected
    assert max(rows_of_user.values()) > 1 and differ
