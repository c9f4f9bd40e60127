"""Which keys an LLM recommender refuses, before anything is loaded or trained."""

from collections.abc import Iterable
from logging import getLogger
from typing import Any

from recbole_llara.config.settings import (
    EARLIER,
    LOCAL,
    NO_FUSION,
    NO_PRIOR,
    OWN,
    PLACEHOLDER,
    READY_MADE,
    SPLITS,
    UNIFORM,
    EvaluationSettings,
    LossSettings,
    OptimSettings,
    PromptSettings,
    RecommenderSettings,
)
from recbole_llara.evaluator.answer import names_one_item
from recbole_llara.model.losses import LOSSES
from recbole_llara.prompt.curriculum import reads_recommender, shown_parts, stages_of
from recbole_llara.prompt.representation import REPRESENTATIONS, Part
from recbole_llara.prompt.template import load_templates
from recbole_llara.utils.errors import UserError

# RecBole's keys that have no part in training an LLM: the value they keep, and what takes their place.
REPLACED_KEYS = {
    "learner": ("adam", "an LLM is trained by Adam"),
    "clip_grad_norm": (None, "an LLM's gradients are clipped by max_grad_norm"),
    "enable_amp": (False, "an LLM's arithmetic is llm_dtype"),
}


def check_llm_keys(model: type, config: Any) -> None:
    """Refuse keys that do not go together, for a model that has an LLM.

    Args:
        model: tells by ``reads_words_only`` and ``is_trained`` what it is.
        config: the run's RunConfig.
    """
    for key, (value, instead) in REPLACED_KEYS.items():
        if config[key] != value:
            raise UserError(f"{key}: found {config[key]!r}, expected {value}: {instead}")
    if config["backend"] != LOCAL and config.reads_data:
        raise UserError(
            f"backend: found {config['backend']} for a run that trains or measures, expected local: only load, recommend, explain and serve "
            "ask another process"
        )
    stages = stages_of(config)
    if config["fsdp"] and any(LOSSES[stage.answer_loss].reads_reference for stage in stages):
        raise UserError(f"answer_loss: found {config['answer_loss']} with fsdp, expected another loss, or fsdp False")
    prior = LossSettings.from_config(config).listwise_prior
    if prior != NO_PRIOR and not any(stage.answer_loss == "listwise" for stage in stages):
        raise UserError(
            f"listwise_prior: found {prior} with answer_loss {config['answer_loss']}, expected answer_loss listwise, which adds it to the "
            "answers; or listwise_prior none"
        )
    if prior != NO_PRIOR and config["item_embeddings"] == "random":
        raise UserError(
            "item_embeddings: found random with listwise_prior recommender, expected recommender, or listwise_prior none"
        )
    prompt, decoding = PromptSettings.from_config(config), EvaluationSettings.from_config(config).decoding
    if config["item_embeddings"] == "random" and stages[-1].hard.tells_conclusions:
        raise UserError(
            "item_embeddings: found random with user_token, recommender_score_token or candidate_order recommender, which tell what a "
            "trained recommender concluded; expected recommender, or user_token False, recommender_score_token none and candidate_order drawn"
        )
    load_templates(config["domain"], config["candidate_num"], prompt.prompt_file)
    if prompt.eval_template == "all" and names_one_item(decoding):
        raise UserError(
            f"eval_template: found all with decoding {decoding}, expected decoding score: texts cannot be averaged; "
            "or choose first or sampled"
        )
    if RecommenderSettings.from_config(config).fusion != NO_FUSION and decoding != "score":
        raise UserError(
            f"fusion: found {config['fusion']} with decoding {decoding}, expected decoding score, which has a likelihood of every "
            "candidate to add"
        )
    check_item_fields(config, shown_parts(config))
    check_new_items(config)
    if config["recommender_rows"] == EARLIER:
        check_earlier_rows(config)
    if model.reads_words_only:
        check_words_only(model, config, shown_parts(config))
    if not model.is_trained:
        check_untrained(model, config)


def is_tuned(config: Any) -> bool:
    """Whether a run trains its LLM recommender; one that is loaded to answer does not."""
    return config.reads_data and OptimSettings.from_config(config).epochs > 0 and config["checkpoint"] is None


def check_earlier_rows(config: Any) -> None:
    """Refuse ``recommender_rows: earlier`` where rows have no order, and where training reads no recommender that is trained here."""
    if SPLITS[config["protocol"]] == READY_MADE:
        raise UserError(
            f"recommender_rows: found {EARLIER} with protocol {config['protocol']}, whose ready-made rows tell neither a time nor which of a "
            "user's comes first; expected all, or protocol llara or leave_one_out"
        )
    if not is_tuned(config):
        return
    if config["rec_checkpoint"]:
        raise UserError(
            f"recommender_rows: found {EARLIER} with rec_checkpoint {config['rec_checkpoint']}, which is read as it is; expected all, or no "
            "rec_checkpoint, so that a recommender is trained on earlier rows"
        )
    reads = reads_recommender(config) or config["listwise_prior"] != NO_PRIOR
    if not reads and config["candidate_draw"] == UNIFORM:
        raise UserError(
            f"recommender_rows: found {EARLIER} with representation {config['representation']} and candidate_draw {UNIFORM}: training reads "
            "no recommender, so that this would only leave out training rows; expected all"
        )


def check_new_items(config: Any) -> None:
    """Refuse another token for items without interactions where item embeddings come from none; warn where [PH] is never trained."""
    settings = RecommenderSettings.from_config(config)
    token, embeddings = settings.new_item_token, settings.item_embeddings
    if settings.as_new_share:
        _check_as_new(config, settings)
    if token == OWN or not reads_recommender(config):
        return
    if embeddings != "recommender":
        raise UserError(
            f"new_item_token: found {token} with item_embeddings {embeddings}, which do not come from interactions, so that no item is "
            f"new to them; expected {OWN}, or item_embeddings recommender"
        )
    stages = stages_of(config)
    trains_placeholder = any(Part.PLACEHOLDER in stage.easy.parts for stage in stages) or config["item_token_dropout"] > 0
    if token == PLACEHOLDER and is_tuned(config) and stages[-1].hard.has_item_embedding and not trains_placeholder:
        getLogger().warning(
            f"new_item_token: found {PLACEHOLDER} with strategy {config['strategy']}, under which no training prompt shows [PH], so that the "
            "LLM has never read what stands for new items; give item_token_dropout 0.1, or strategy curriculum or two_stage"
        )


def _check_as_new(config: Any, settings: RecommenderSettings) -> None:
    share = f"as_new_share: found {settings.as_new_share} with"
    if settings.new_item_token in (OWN, PLACEHOLDER):
        raise UserError(
            f"{share} new_item_token {settings.new_item_token}, which makes no vectors of new items; expected 0, or new_item_token text or "
            "neighbours"
        )
    if settings.item_embeddings != "recommender" or settings.shuffle_item_embeddings:
        dealt = (
            "shuffle_item_embeddings True"
            if settings.shuffle_item_embeddings
            else f"item_embeddings {settings.item_embeddings}"
        )
        raise UserError(
            f"{share} {dealt}; expected 0, or the recommender's own embeddings, out of which those of new items are made"
        )
    if Part.ITEM_EMBEDDING not in shown_parts(config):
        raise UserError(
            f"{share} representation {config['representation']}, which shows no behavioural token; expected 0, or such as hybrid"
        )


def check_words_only(model: type, config: Any, shown: Iterable[Part]) -> None:
    """Refuse prompts that show more parts of an item than words, for a model that reads no vectors."""
    if set(shown) & {Part.USER, Part.SCORE}:
        raise UserError(
            f"user_token and recommender_score_token: found one of them with {model.__name__}, which reads words, no vectors; expected "
            "False and none, or LLaRA or RSLLM, with representation textual if need be"
        )
    worded = [name for name, representation in REPRESENTATIONS.items() if not representation.has_slot]
    if not any(set(shown) <= set(REPRESENTATIONS[name].parts) for name in worded):
        raise UserError(
            f"representation: found {config['representation']}, expected one of {', '.join(worded)}: {model.__name__} reads words, "
            "no vectors; for those choose LLaRA or RSLLM"
        )


def check_item_fields(config: Any, shown: Iterable[Part]) -> None:
    """Refuse fields of items whose titles no prompt shows."""
    if config["item_fields"] and Part.TITLE not in shown:
        raise UserError(
            f"item_fields: found {list(config['item_fields'])} with representation {config['representation']}, which shows no title for "
            "them to stand behind; expected none, or a representation with titles such as hybrid or textual"
        )


def check_untrained(model: type, config: Any) -> None:
    """Refuse epochs, for a model that learns nothing."""
    if config["epochs"]:
        raise UserError(
            f"epochs: found {config['epochs']}, expected 0: {model.__name__} is not trained; TALLRec tunes an LLM on such prompts"
        )
