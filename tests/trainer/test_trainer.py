"""LLaRA trained on toy data: what is frozen stays, what is saved comes back, behaviour reaches the answer."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_run import STOCK_KEYS
from transformers import LlamaTokenizer

from recbole_llara.config.settings import OptimSettings
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.trainer.trainer import learning_rate_factor
from recbole_llara.utils.errors import UserError

TITLES = [f" Title {item} é" for item in range(60)]
LLAMA_2 = Path(__file__).parents[3] / "shared" / "tokenizers" / "llama-2"


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("llm_tuning", ["lora", "frozen", "full"])
def test_training_moves_what_it_should_and_nothing_else(keys, llm_tuning, make_trainer):
    trainer, data = make_trainer({**keys, "llm_tuning": llm_tuning})
    model = trainer.model
    before, embeddings = _state(model), model.item_tokens.item_embeddings.clone()
    table = model.recommender.item_embeddings.clone()
    trainer.fit(data.train_data, data.valid_data)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"item_tokens.projector.linear_1.weight", "item_tokens.projector.linear_2.weight"} <= moved
    in_llm = {name for name in moved if name.startswith("llm.")}
    if llm_tuning == "frozen":
        assert not in_llm
    elif llm_tuning == "lora":
        assert in_llm and all("lora_" in name for name in in_llm)
    else:
        assert len(in_llm) > 10
    assert torch.equal(model.item_tokens.item_embeddings, embeddings)
    assert torch.equal(model.recommender.item_embeddings, table)


@pytest.mark.parametrize("llm_tuning", ["lora", "full"])
def test_a_saved_run_answers_the_same_when_loaded(keys, llm_tuning):
    keys = {**keys, "llm_tuning": llm_tuning}
    first = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    again = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "checkpoint": first["checkpoint"]})
    assert first["test_result"] == again["test_result"]
    for one, other in zip(_cases(first), _cases(again), strict=True):
        assert one == other


def _cases(paths):
    return [json.loads(line) for line in Path(paths["cases_file"]).read_text(encoding="utf-8").splitlines()]


def test_two_runs_of_one_seed_are_equal(keys):
    first, second = (run_recbole_llara("LLaRA", "toy", config_dict=keys) for _ in range(2))
    assert first["run_dir"] != second["run_dir"]
    assert _cases(first) == _cases(second)


def test_the_result_tells_what_was_run(keys):
    paths = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    result = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))
    assert (result["model"], result["rec_model"], result["n"], result["decoding"]) == ("LLaRA", "SASRec", 12, "score")
    assert result["recommender"]["sha256"] and set(result["candidate_sha256"]) == {"valid", "test"}
    assert result["interval_95"]["low"] <= result["metrics"]["test"]["hit@1"] <= result["interval_95"]["high"]
    likelihoods = [
        torch.tensor(case["scores"]).log_softmax(0)[case["candidates"].index(case["target"])].item() for case in _cases(paths)
    ]
    assert result["nll"] == pytest.approx(-sum(likelihoods) / 12, abs=1e-5) and 0 <= result["ece"] <= 1
    stock = run_recbole_llara(
        "SASRec", "toy", config_dict={key: keys[key] for key in (*STOCK_KEYS, "max_eval_rows")} | {"epochs": 1}
    )
    other = json.loads(Path(stock["result_file"]).read_text(encoding="utf-8"))
    assert other["candidate_sha256"] == result["candidate_sha256"] and other["nll"] > 0
    assert [case["candidates"] for case in _cases(stock)] == [case["candidates"] for case in _cases(paths)]


@pytest.mark.parametrize("decoding", ["generate", "constrained", "score"])
def test_every_decoding_answers(keys, decoding):
    paths = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "decoding": decoding})
    cases = _cases(paths)
    assert len(cases) == 12
    answers = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))["answers"]
    if decoding == "generate":
        assert all(case["answer_text"] is not None for case in cases)
        assert answers["exact"] == sum(case["valid"] for case in cases) and answers["unwrapped"] == 0
        assert sum(answers.values()) == 12 == answers["exact"] + answers["unmatched"] + answers["empty"]
    else:
        assert answers is None and all(case["outcome"] is None for case in cases)
        assert paths["test_result"]["validratio"] == 1.0
        assert all(case["answer"] in case["candidates"] for case in cases)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_causal_lm_with_the_real_llama_2_tokenizer(keys, make_llm, tmp_path, architecture, save_llm):
    if not LLAMA_2.is_dir():
        pytest.skip("the Llama-2 tokenizer is not at ../shared/tokenizers/llama-2")
    tokenizer = LlamaTokenizer.from_pretrained(LLAMA_2)
    llm_path = save_llm(tmp_path / architecture, make_llm(architecture, vocab_size=len(tokenizer)), tokenizer)
    paths = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "llm_path": llm_path})
    assert paths["test_result"]["validratio"] == 1.0
    assert {case["answer_text"] for case in _cases(paths)} <= {title.strip() for title in TITLES}


def test_an_architecture_that_is_no_llama(keys, make_llm, make_tokenizer, tmp_path, save_llm):
    tokenizer = make_tokenizer(TITLES, 350)
    llm = make_llm("qwen2", vocab_size=len(tokenizer) + 8)  # transformers adds Qwen2's own padding token
    paths = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "llm_path": save_llm(tmp_path / "qwen2", llm, tokenizer)})
    config = json.loads((Path(paths["checkpoint"]) / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert {name.split(".")[-1] for name in config["target_modules"]} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_every_decoding_answers_a_row_alone_as_in_a_batch(keys):
    for decoding in ("generate", "constrained", "score"):
        together = run_recbole_llara("LLaRA", "toy", config_dict={**keys, "decoding": decoding, "eval_batch_size": 12})
        checkpoint = {"decoding": decoding, "eval_batch_size": 1, "checkpoint": together["checkpoint"]}
        alone = run_recbole_llara("LLaRA", "toy", config_dict={**keys, **checkpoint})
        assert [case["answer"] for case in _cases(together)] == [case["answer"] for case in _cases(alone)]


def test_all_templates_are_averaged_each_with_an_order_of_candidates_of_its_own(keys, make_trainer, monkeypatch):
    """Against single passes put together by hand, the orders read off the prompts."""
    trainer, data = make_trainer({**keys, "eval_template": "all"})
    model = trainer.model.eval()
    interaction = next(iter(data.test_data))[0]
    candidates, asked = interaction["candidate_id_list"], []
    encode = model.encoder.encode

    def watched(history, shown, targets, representation, template_index, *rest):
        asked.append((shown, template_index))
        return encode(history, shown, targets, representation, template_index, *rest)

    monkeypatch.setattr(model.encoder, "encode", watched)
    together = model.answer_candidates(interaction).scores
    assert [index.unique().tolist() for _, index in asked] == [[0], [1], [2], [3]]
    assert torch.equal(asked[0][0], candidates)
    for shown, _ in asked[1:]:
        assert torch.equal(shown.sort(1).values, candidates.sort(1).values) and not torch.equal(shown, candidates)
        assert len({tuple(row.argsort().tolist()) for row in shown - candidates}) > 1  # not one order for all rows
    expected = torch.zeros(candidates.shape)
    for row in range(len(candidates)):
        for shown, index in asked[:4]:
            model.eval_template = "first"
            monkeypatch.setattr(
                model.encoder, "encode", lambda h, c, t, r, i, n=int(index[0]): encode(h, c, t, r, torch.full_like(i, n))
            )
            one = interaction[row : row + 1]
            one.update(type(interaction)({"candidate_id_list": shown[row : row + 1]}))
            scores = model.answer_candidates(one).scores[0].log_softmax(0)
            for item, score in zip(shown[row].tolist(), scores.tolist(), strict=True):
                expected[row, candidates[row].tolist().index(item)] += score / 4
    assert torch.allclose(together, expected, atol=1e-4)
    with pytest.raises(UserError, match="eval_template: found all with decoding generate"):
        make_trainer({**keys, "eval_template": "all", "decoding": "generate"})


def test_behaviour_flows_through_the_token(keys, make_trainer):
    """Other item embeddings give other scores in a hybrid prompt, and the same in a text-only one."""
    trainer, data = make_trainer(keys)
    model = trainer.model.eval()
    interaction = next(iter(data.test_data))[0]
    scores = model.answer_candidates(interaction).scores
    table = model.item_tokens.item_embeddings
    table.copy_(table[torch.randperm(len(table))])
    assert not torch.allclose(scores, model.answer_candidates(interaction).scores)
    shuffled, _ = make_trainer({**keys, "shuffle_item_embeddings": True})
    plain, _ = make_trainer(keys)
    tables = [trainer.model.item_tokens.item_embeddings for trainer in (shuffled, plain)]
    assert not torch.equal(*tables)
    assert torch.allclose(tables[0][1:].sum(0), tables[1][1:].sum(0), atol=1e-4)
    text, data = make_trainer({**keys, "representation": "textual"})
    assert text.model.recommender is None and text.model.item_tokens.projector is None


def test_micro_batches_do_not_change_a_step(keys, make_trainer):
    """Sixteen rows in one pass, or in passes of three: the same parameters after the step."""
    states = []
    for size in (16, 3):
        trainer, data = make_trainer({**keys, "micro_batch_size": size, "llm_tuning": "full"})
        trainer.total_steps = 10
        trainer.progress.step = 5
        rows = trainer.model.training_rows(next(iter(data.train_data)), 0)
        torch.manual_seed(0)
        trainer.model.train()
        losses = sum(trainer._train_step(rows).values())
        states.append((losses, {n: p.grad for n, p in trainer.model.named_parameters()}, _state(trainer.model)))
    assert states[0][0] == pytest.approx(states[1][0], abs=1e-5)
    for name, value in states[0][2].items():
        assert torch.allclose(value, states[1][2][name], atol=2e-4), name


def test_training_candidates_change_with_the_epoch_and_hold_the_target(keys, make_trainer):
    trainer, data = make_trainer(keys)
    interaction = next(iter(data.train_data))
    first, same, second = (trainer.model.training_rows(interaction, epoch).candidates for epoch in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, second)
    targets = interaction["item_id"][:, None]
    assert (first == targets).sum(1).eq(1).all() and (second == targets).sum(1).eq(1).all()


def test_a_checkpoint_of_something_else_is_refused(keys):
    paths = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    with pytest.raises(UserError, match="recommender_sha256"):
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, "rec_learning_rate": 0.01, "checkpoint": paths["checkpoint"]})
    with pytest.raises(UserError, match="representation"):
        run_recbole_llara(
            "LLaRA", "toy", config_dict={**keys, "representation": "behavioural", "checkpoint": paths["checkpoint"]}
        )


def test_an_altered_or_missing_file_of_a_checkpoint_is_found(keys):
    checkpoint = Path(run_recbole_llara("LLaRA", "toy", config_dict=keys)["checkpoint"])
    weights = checkpoint / "item_tokens.safetensors"
    tensors = load_file(weights)
    tensors["projector.linear_1.bias"] += 1
    save_file(tensors, weights)
    with pytest.raises(UserError, match="item_tokens.safetensors is missing or was altered"):
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, "checkpoint": str(checkpoint)})
    with pytest.raises(UserError, match="which is not there"):
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, "checkpoint": str(checkpoint / "nowhere")})


def test_the_adapter_is_pefts_own(keys):
    checkpoint = Path(run_recbole_llara("LLaRA", "toy", config_dict=keys)["checkpoint"])
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "item_tokens.safetensors", "meta.json"} <= names


def test_an_interrupt_keeps_the_best_checkpoint(keys, monkeypatch, make_trainer):
    trainer, data = make_trainer({**keys, "epochs": 3})
    step = type(trainer)._train_step

    def interrupted(self, rows):
        if self.progress.step == 4:
            raise KeyboardInterrupt
        return step(self, rows)

    monkeypatch.setattr(type(trainer), "_train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data.train_data, data.valid_data)
    assert trainer.best_epoch == 0
    trainer.evaluate(data.test_data)  # loads the checkpoint that was kept


def test_the_boards_are_told_of_every_step_and_validation(keys, make_trainer, monkeypatch):
    """TensorBoard and Weights & Biases, RecBole's own loggers: losses apart, rate, curriculum, speed; ValidRatio."""
    trainer, data = make_trainer({**keys, "strategy": "curriculum"}, "RSLLM")
    scalars, logged = [], []
    monkeypatch.setattr(trainer.tensorboard, "add_scalar", lambda name, value, step: scalars.append((name, float(value), step)))
    monkeypatch.setattr(
        trainer.wandblogger, "log_metrics", lambda values, head="train", commit=True: logged.append((head, values))
    )
    trainer.fit(data.train_data, data.valid_data)
    told = {name for name, _, _ in scalars}
    wanted = {"loss", "loss_answer", "loss_user_item", "loss_item_item", "learning_rate", "hard_probability", "rows_per_second"}
    assert {f"step/{name}" for name in wanted} <= told and {"valid/validratio", "valid/hit@1"} <= told
    steps = [values for head, values in logged if head == "step"]
    assert [values["optimiser_step"] for values in steps] == [0, 1, 2] and wanted <= steps[0].keys()
    assert any("validratio" in values for head, values in logged if head == "valid")
    assert [value for name, value, _ in scalars if name == "step/hard_probability"] == [
        0.0,
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
    ]


def test_learning_rate_warms_up_and_falls_by_cosine():
    names = {
        "epochs": 1, "train_batch_size": 1, "learning_rate": 1.0, "weight_decay": 0.0, "micro_batch_size": 1,
        "stage_1_epochs": 1, "stage_1_learning_rate": None, "weight_decay_on": "all",
        "min_learning_rate_ratio": 0.01, "warmup_learning_rate_ratio": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0, "save_steps": 0,
        "save_total_limit": 1,
    }  # fmt: skip
    settings = OptimSettings.from_config(names)
    factors = [learning_rate_factor(step, 100, settings) for step in range(101)]
    assert factors[0] == pytest.approx(0.01) and factors[10] == pytest.approx(1.0) and factors[100] == pytest.approx(0.01)
    assert factors[55] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert max(factors) == factors[10]
