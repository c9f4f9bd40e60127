"""Stages: the probability of the hard task follows its equation, and draws depend on (seed, step) alone."""

import itertools

import pytest

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import OptimSettings, PromptSettings
from recbole_llara.prompt.curriculum import CURRICULA, make_stages, shown_representations, stages_of
from recbole_llara.prompt.representation import Part
from recbole_llara.utils.errors import UserError

TOTAL = 4000


@pytest.fixture
def stages():
    """Builds stages of a strategy from keys."""

    def make(strategy, representation="hybrid", easy="text_only", seed=0, curriculum="linear", **optim):
        prompt = PromptSettings(
            representation=representation,
            easy_representation=easy,
            stage_1_representation=easy,
            strategy=strategy,
            curriculum=curriculum,
            max_title_tokens=64,
            max_field_tokens=16,
            shuffle_titles=False,
            eval_template="first",
            prompt_file=None,
            prompt_history=None,
            prompt_format="plain",
            user_token=False,
            recommender_score_token="none",
            candidate_order="drawn",
            answer_form="title",
            item_token_dropout=0.0,
        )
        keys = {
            "epochs": 5, "train_batch_size": 1, "learning_rate": 0.5, "weight_decay": 0.0, "stage_1_epochs": 2,
            "stage_1_learning_rate": None, "weight_decay_on": "all", "micro_batch_size": 1, "min_learning_rate_ratio": 0.0,
            "warmup_learning_rate_ratio": 0.0, "warmup_ratio": 0.0, "max_grad_norm": None,
            "save_steps": 0, "save_total_limit": 1,
        }  # fmt: skip
        return make_stages(prompt, OptimSettings(**{**keys, **optim}), seed)

    return make


def _hard_share(stage, steps):
    return sum(stage.representation(step, TOTAL).name == "hybrid" for step in steps) / len(steps)


def test_linear_curriculum_is_step_over_total_steps(stages):
    (stage,) = stages("curriculum")
    assert [stage.hard_probability(step, TOTAL) for step in (0, 1000, 4000)] == [0.0, 0.25, 1.0]
    assert (stage.easy.name, stage.hard.name, stage.epochs) == ("text_only", "hybrid", 5)


def test_draws_follow_the_probability(stages):
    (stage,) = stages("curriculum")
    # 1,000 draws around p = 0.375: five standard deviations are 0.077.
    assert _hard_share(stage, range(1000, 2000)) == pytest.approx(0.375, abs=0.077)


def test_progress_belongs_to_the_step_and_not_to_an_epoch(stages):
    (stage,) = stages("curriculum")
    assert _hard_share(stage, range(3800, 4000)) > 0.85


def test_draws_depend_on_seed_and_step_alone(stages):
    (first,), (second,) = (stages("curriculum", seed=5) for _ in range(2))
    names = [first.representation(step, TOTAL).name for step in range(200, 400)]
    assert names == [second.representation(step, TOTAL).name for step in range(399, 199, -1)][::-1]
    (other,) = stages("curriculum", seed=6)
    assert names != [other.representation(step, TOTAL).name for step in range(200, 400)]


def test_direct_trains_the_hard_task_alone(stages):
    (stage,) = stages("direct")
    assert _hard_share(stage, range(0, TOTAL, 50)) == 1.0


def test_two_stages_share_the_epochs_and_have_rates_of_their_own(stages):
    first, second = stages("two_stage", stage_1_learning_rate=0.1)
    assert (first.hard.name, first.epochs, first.learning_rate) == ("text_only", 2, 0.1)
    assert (second.hard.name, second.epochs, second.learning_rate) == ("hybrid", 3, 0.5)
    assert _hard_share(first, range(0, TOTAL, 50)) == 0.0 and _hard_share(second, range(0, TOTAL, 50)) == 1.0
    assert stages("two_stage")[0].learning_rate == 0.5


def test_a_first_stage_that_takes_all_epochs_is_refused(stages):
    with pytest.raises(UserError, match="stage_1_epochs: found 3 of 3 epochs"):
        stages("two_stage", epochs=3, stage_1_epochs=3)


def test_nothing_is_staged_where_nothing_is_trained(stages):
    (stage,) = stages("two_stage", epochs=0)
    assert stage.hard.name == "hybrid" and stage.epochs == 0


@pytest.mark.parametrize("curriculum", sorted(CURRICULA))
def test_curricula_rise_from_0_to_1(curriculum):
    values = [CURRICULA[curriculum](step / 20) for step in range(21)]
    assert values[0] == 0.0 and values[-1] == pytest.approx(1.0)
    assert all(low <= high for low, high in itertools.pairwise(values))


def test_a_representation_without_embeddings_has_no_task_with_placeholders(stages):
    for strategy in ("curriculum", "two_stage"):
        (stage,) = stages(strategy, representation="textual")
        assert {stage.representation(step, TOTAL).name for step in range(0, TOTAL, 100)} == {"textual"}
    first, second = stages("two_stage", representation="textual", easy="text_id")  # RSLLM without stage 2's item embedding
    assert Part.ITEM_ID in first.hard.parts and second.hard.name == "textual"


def test_only_a_default_strategy_gives_way(keys):
    """What the user asks for is trained, or refused; where nothing is trained there is nothing to refuse."""
    words = {key: value for key, value in keys.items() if key != "strategy"} | {"representation": "textual"}
    (stage,) = stages_of(RunConfig("LLaRA", "toy", config_dict=words))  # an LLM of one's own: curriculum by default
    assert stage.easy.name == stage.hard.name == "textual"
    (stage,) = stages_of(RunConfig("TALLRec", "toy", config_dict=words))
    assert stage.hard.name == "textual"
    for strategy in ("two_stage", "curriculum"):
        asked = {**words, "strategy": strategy, "epochs": 2, "stage_1_epochs": 1}
        with pytest.raises(UserError, match=f"strategy: found {strategy} with representation textual"):
            RunConfig("LLaRA", "toy", config_dict=asked)
        honoured = stages_of(
            RunConfig(
                "LLaRA", "toy", config_dict={**asked, "easy_representation": "text_id", "stage_1_representation": "text_id"}
            )
        )
        assert honoured[0].easy.name == "text_id" and honoured[-1].hard.name == "textual"
        RunConfig("LLaRA", "toy", config_dict={**asked, "epochs": 0})
        RunConfig("LLaRA", "toy", config_dict={**asked, "checkpoint": "saved/run/checkpoint"})


def test_shown_representations_are_each_stages_own_once(stages, monkeypatch):
    def shown(*arguments):
        monkeypatch.setattr("recbole_llara.prompt.curriculum.stages_of", lambda _: stages(*arguments))
        return [representation.name for representation in shown_representations(None)]

    assert shown("direct") == ["hybrid"]
    assert shown("curriculum") == ["text_only", "hybrid"]
    assert shown("two_stage", "numerical", "textual") == ["textual", "numerical"]
