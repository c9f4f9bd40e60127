"""RSLLM: its three losses against plain loops, what learns in which stage, stages that follow one another."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_llara.model.losses import TrainingRows
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.prompt.template import CANDIDATES, HISTORY
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError

TWO_STAGES = {"strategy": "two_stage", "epochs": 2, "stage_1_epochs": 1}


@pytest.fixture
def rows():
    """Three rows; the first and the last have one target."""
    return TrainingRows(
        history=torch.tensor([[3, 4, 5], [6, 0, 0], [7, 8, 0]]),
        candidates=torch.tensor([[9, 10, 11], [12, 13, 14], [10, 9, 15]]),
        targets=torch.tensor([10, 13, 10]),
        template_index=torch.tensor([0, 1, 2]),
        places=torch.arange(3),
        row_ids=torch.arange(3),
        read_as=torch.tensor([[9, 10, 11], [12, 13, 14], [10, 9, 15]]),
        draws=torch.zeros(3, dtype=torch.int64),
    )


def _losses(model, rows, name):
    """The losses of a step that is one pass."""
    return model.step_losses(rows, model.begin_step(rows, REPRESENTATIONS[name]))


class _PlainLoop:
    """RSLLM on one row at a time: tokens put together one by one, full logits, states averaged one by one."""

    def __init__(self, model, name):
        self.model, self.name, self.tokenizer = model, name, model.tokenizer
        self.embeddings = model.llm.get_input_embeddings()

    def tokens(self, text):
        anchor = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        return self.tokenizer("\n" + text, add_special_tokens=False)["input_ids"][len(anchor) :]

    def item(self, item):
        """Vectors of an item: of its title's tokens, of [DSR] and of its own token."""
        slots = self.model.item_tokens
        vectors = [self.embeddings(torch.tensor(token)) for token in self.tokens(" " + self.model.encoder.titles[item])]
        last = slots.item_ids[item] if self.name == "text_id" else slots.projector(slots.item_vectors(torch.tensor(item)))
        return [*vectors, slots.description, last]

    def states(self, vectors):
        return self.model.llm(inputs_embeds=torch.stack(vectors)[None], output_hidden_states=True)

    def row(self, history, candidates, target, template):
        """The answer's loss, its tokens, g^U, g^(I|U) and g^I."""
        vectors, in_history = [], []
        for number, segment in enumerate(self.model.encoder.templates[template].segments):
            if segment in (HISTORY, CANDIDATES):
                for place, item in enumerate(i for i in (history if segment == HISTORY else candidates) if i):
                    if place:
                        vectors += [self.embeddings(torch.tensor(token)) for token in self.tokens(",")]
                        in_history += [False] * len(self.tokens(","))
                    parts = self.item(item)
                    vectors += parts
                    in_history += [segment == HISTORY] * len(parts)
            else:
                ids = self.tokenizer(segment)["input_ids"] if number == 0 else self.tokens(segment)
                vectors += [self.embeddings(torch.tensor(token)) for token in ids]
                in_history += [False] * len(ids)
        title = self.tokens(" " + self.model.encoder.titles[target])
        answer = [*title, self.tokenizer.eos_token_id]
        output = self.states(vectors + [self.embeddings(torch.tensor(token)) for token in answer])
        logits, states = output.logits[0], output.hidden_states[-1][0]
        loss = sum(
            cross_entropy(logits[len(vectors) + offset - 1][None], torch.tensor([token])) for offset, token in enumerate(answer)
        )
        user = sum(states[place] for place, here in enumerate(in_history) if here) / sum(in_history)
        given = sum(states[len(vectors) + offset] for offset in range(len(title))) / len(title)
        opening = [self.embeddings(torch.tensor(token)) for token in self.tokenizer("")["input_ids"]]
        alone = self.states(opening + self.item(target)).hidden_states[-1][0][len(opening) :]
        return loss.item(), len(answer), user.tolist(), given.tolist(), alone.mean(0).tolist()


def _info_nce(anchors, others, targets, temperature):
    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    total = 0.0
    for i in range(len(anchors)):
        kept = [j for j in range(len(others)) if j == i or targets[j] != targets[i]]
        powers = {j: math.exp(cosine(anchors[i], others[j]) / temperature) for j in kept}
        total -= math.log(powers[i] / sum(powers.values()))
    return total / len(anchors)


@pytest.mark.parametrize("name", ["text_id", "hybrid_with_dsr"])
def test_the_three_losses_equal_plain_loops(keys, make_trainer, rows, name):
    trainer, _ = make_trainer({**keys, **TWO_STAGES, "llm_tuning": "frozen"}, "RSLLM")
    model = trainer.model.eval()
    with torch.no_grad():
        for parameter in model.item_tokens.parameters():  # apart from one another, so that a mix-up shows
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        tokens = int((model.encoder.answer_ids(rows.targets, REPRESENTATIONS[name]) >= 0).sum())
        found = _losses(model, rows, name)
        loop = _PlainLoop(model, name)
        parts = [
            loop.row(rows.history[i].tolist(), rows.candidates[i].tolist(), int(rows.targets[i]), int(rows.template_index[i]))
            for i in range(3)
        ]
    losses, counts, user, given, item = (list(column) for column in zip(*parts, strict=True))
    assert sum(counts) == tokens
    targets = rows.targets.tolist()
    assert found["answer"].item() == pytest.approx(sum(losses) / tokens, abs=1e-5)
    assert found["item_item"].item() == pytest.approx(0.3 * _info_nce(item, given, targets, 0.5), abs=1e-5)
    assert found["user_item"].item() == pytest.approx(0.4 * _info_nce(user, item, targets, 0.5), abs=1e-5)


@pytest.mark.parametrize("name", ["text_id", "hybrid_with_dsr"])
def test_the_user_tower_sees_the_newest_item_s_token(keys, make_trainer, rows, name):
    """Nothing of the history follows it, so in a causal model its own states alone can tell of it."""
    trainer, _ = make_trainer({**keys, **TWO_STAGES, "item_embeddings": "random"}, "RSLLM")
    model = trainer.model.eval()
    _losses(model, rows, name)["user_item"].backward()
    table = model.item_tokens.item_ids if name == "text_id" else model.item_tokens.item_embeddings
    for newest in (5, 6, 8):
        assert table.grad[newest].abs().max() > 0


@pytest.mark.parametrize(("stage", "learning"), [("text_id", {"item_ids"}), ("hybrid_with_dsr", {"projector"})])
def test_gradients_reach_lora_and_the_stage_s_item_tokens_and_nothing_else(keys, make_trainer, rows, stage, learning):
    trainer, _ = make_trainer({**keys, **TWO_STAGES}, "RSLLM")
    model = trainer.model.train()
    step = model.begin_step(rows, REPRESENTATIONS[stage])
    sum(model.step_losses(rows, step).values()).backward()
    step.finish()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    in_llm = {name for name in reached if name.startswith("llm.")}
    assert in_llm and all("lora_B" in name for name in in_llm)  # A learns from the second step on, once B is not 0
    assert {name.split(".")[1] for name in reached - in_llm} == {"description", *learning}
    if stage == "text_id":
        shown = {int(item) for column in (rows.history, rows.candidates) for item in column.flatten() if item}
        moved = model.item_tokens.item_ids.grad.abs().sum(1).nonzero()[:, 0].tolist()
        assert set(moved) == shown


def test_each_contrastive_loss_can_be_switched_off(keys, make_trainer, rows):
    names = {}
    for weights in ((0.3, 0.0), (0.0, 0.4), (0.0, 0.0)):
        switches = dict(zip(("item_item_weight", "user_item_weight"), weights, strict=True))
        trainer, _ = make_trainer({**keys, **TWO_STAGES, **switches}, "RSLLM")
        names[weights] = set(_losses(trainer.model, rows, "text_id"))
    assert names == {(0.3, 0.0): {"answer", "item_item"}, (0.0, 0.4): {"answer", "user_item"}, (0.0, 0.0): {"answer"}}


def test_two_stages_follow_one_another_and_the_second_is_kept(keys, caplog):
    caplog.set_level("INFO")
    paths = run_recbole_llara("RSLLM", "toy", config_dict={**keys, **TWO_STAGES, "epochs": 3, "stage_1_learning_rate": 0.001})
    assert "Stage 1 of 2: text_id, 1 epochs" in caplog.text and "Stage 2 of 2: hybrid_with_dsr, 2 epochs" in caplog.text
    meta = json.loads((Path(paths["checkpoint"]) / "meta.json").read_text(encoding="utf-8"))
    assert meta["stage"] == 2 and meta["belongs_to"]["representation"] == "hybrid_with_dsr" and meta["epoch"] in (1, 2)
    again = run_recbole_llara(
        "RSLLM", "toy", config_dict={**keys, **TWO_STAGES, "epochs": 3, "checkpoint": paths["checkpoint"]}
    )
    assert again["test_result"] == paths["test_result"]


def test_stage_2_begins_where_stage_1_was_best(keys, make_trainer, monkeypatch):
    """What stage 2 starts from is the checkpoint of stage 1, and its best score starts anew."""
    trainer, data = make_trainer({**keys, **TWO_STAGES}, "RSLLM")
    seen = []
    enter = type(trainer)._enter

    def entered(self, number, steps):
        if number:
            seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
            saved = json.loads((Path(self.saved_model_file) / "meta.json").read_text(encoding="utf-8"))
            assert saved["stage"] == 1 and saved["belongs_to"]["representation"] == "text_id"
        enter(self, number, steps)
        if number:
            assert self.best_valid_score == -math.inf and self.cur_step == 0 and self.progress.step == 0

    monkeypatch.setattr(type(trainer), "_enter", entered)
    trainer.fit(data.train_data, data.valid_data)
    after = trainer.model.state_dict()
    assert not torch.equal(seen[0]["item_tokens.projector.linear_1.weight"], after["item_tokens.projector.linear_1.weight"])
    assert torch.equal(seen[0]["item_tokens.item_ids"], after["item_tokens.item_ids"])  # stage 2 shows none of them


def test_random_item_embeddings_learn_and_need_no_recommender(keys, make_trainer):
    trainer, data = make_trainer({**keys, **TWO_STAGES, "item_embeddings": "random"}, "RSLLM")
    assert trainer.model.recommender is None and not list(Path(keys["checkpoint_dir"]).glob("recommenders/*"))
    before = trainer.model.item_tokens.item_embeddings.detach().clone()
    trainer.fit(data.train_data, data.valid_data)
    assert not torch.equal(before, trainer.model.item_tokens.item_embeddings)


def test_a_step_of_one_row_is_refused_before_anything_is_trained(keys):
    with pytest.raises(UserError, match="train_batch_size: found 1, expected at least 2"):
        run_recbole_llara("RSLLM", "toy", config_dict={**keys, **TWO_STAGES, "train_batch_size": 1})
    assert not Path(keys["checkpoint_dir"]).exists()
