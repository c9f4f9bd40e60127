"""Under ``eval_dtype: bfloat16`` a loaded run holds the weights of its products in bfloat16, and answers exactly as an evaluation does."""

from pathlib import Path

import pytest
import torch

from recbole_llara.llm.architecture import causal_lm, decoder_blocks, input_embeddings
from recbole_llara.serving.export import export
from recbole_llara.serving.loaded import load, read_run

HISTORIES = [["i1", "i2", "i3", "i4"], ["i7", "i2"], ["i5"]]
CANDIDATES = [["i10", "i11", "i12", "i13", "i14"]] * 3


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_answers_are_those_of_weights_cast_for_each_pass(tuning, make_run):
    folder = make_run(llm_tuning=tuning)
    held, cast, fine = load(folder, eval_dtype="bfloat16"), read_run(folder, eval_dtype="bfloat16"), load(folder)
    answers = [
        [[(item.item_id, item.score) for item in row] for row in run.recommend_batch(HISTORIES, 5, CANDIDATES)]
        for run in (held, cast, fine)
    ]
    assert answers[0] == answers[1] != answers[2]
    blocks = {run: decoder_blocks(causal_lm(run.model.llm)) for run in (held, cast, fine)}
    sizes = {run: sum(p.nbytes for p in blocks[run].parameters()) for run in blocks}
    assert sizes[held] < 0.6 * sizes[cast] and sizes[cast] == sizes[fine]
    assert input_embeddings(held.model.llm).weight.dtype == torch.float32
    assert {p.dtype for name, p in blocks[held].named_parameters() if "norm" not in name} == {torch.bfloat16}
    assert {p.dtype for name, p in blocks[held].named_parameters() if "norm" in name} == {torch.float32}


def test_an_exported_run_has_the_weights_that_were_trained(make_run, tmp_path):
    folder = Path(make_run(llm_tuning="full", eval_dtype="bfloat16"))
    trained = read_run(folder).model.llm.state_dict()
    exported = read_run(export(folder, tmp_path / "exported")).model.llm.state_dict()
    assert trained.keys() == exported.keys()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in trained.items())


def test_what_was_read_is_kept_in_halves_too(make_run):
    run = load(make_run(eval_dtype="bfloat16"))
    run.recommend(HISTORIES[0], 5, CANDIDATES[0])
    first = run.model.prefixes.bytes
    again = run.recommend(HISTORIES[0], 5, ["i20", "i21", "i22", "i23", "i24"])
    assert run.model.prefixes.reused > 0 and len(again) == 5
    fine = load(make_run())
    fine.recommend(HISTORIES[0], 5, CANDIDATES[0])
    assert 2 * first == fine.model.prefixes.bytes
