"""What was trained of an LLM recommender, as plain values for its checkpoint; and back into the model, strictly."""

from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from recbole_llara.checkpoint.weights import ADAPTER, LLM, Checkpoint, Weights, read_checkpoint, shapes
from recbole_llara.data.text_table import TextTable
from recbole_llara.llm.architecture import causal_lm, kept_layers
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.kept import PIECES, PROBE
from recbole_llara.prompt.representation import Part
from recbole_llara.utils.errors import UserError, differences
from recbole_llara.utils.hashing import DIGITS
from recbole_llara.utils.process_setup import progress_bars


def belongs_to(model: LLMRecommender) -> dict[str, Any]:
    """What a checkpoint of the model fits: compared on loading."""
    llm = causal_lm(model.llm)
    text = llm.config.get_text_config()
    return {
        **model.data_facts,
        "llm_architecture": type(llm).__name__,
        "llm_shape": [text.num_hidden_layers, text.hidden_size, text.vocab_size],
        "llm_layers": kept_layers(model.llm),
        "llm_digest": model.llm_digest,
        "tokenizer_digest": model.tokenizer_digest,
        "llm_tuning": model.llm_tuning,
        "llm_quantization": model.llm_quantization,
        "representation": model.representation.name,
        "candidate_order": "recommender" if model.representation.in_recommender_order else "drawn",
        "answer_form": "letter" if model.representation.answer is Part.LETTER else "title",
        "item_fields": TextTable.of(model.encoder.fields).sha256[:DIGITS] if len(model.encoder.fields) else None,
        "new_item_token": model.new_item_token,
        "recommender_sha256": None if model.recommender is None else model.recommender.sha256,
        "item_tokens": shapes(model.item_tokens.state_dict()),
    }


def weights_of(model: LLMRecommender) -> Weights:
    """What was trained of the model."""

    def write_llm(folder: Path) -> None:
        model.encoder.pieces.save(folder / PIECES, model.pieces_key)
        if model.llm_tuning == "lora":
            model.llm.save_pretrained(folder / ADAPTER)
        elif model.llm_tuning == "full":
            with progress_bars(False):
                model.llm.save_pretrained(folder / LLM)
            model.tokenizer.save_pretrained(folder / LLM)

    more = {"prompts_digest": model.trained_prompts, PROBE: dict(model.probed)}
    return Weights(model.item_tokens.state_dict(), model.snapshot, belongs_to(model), model.trained_on, more, write_llm)


def load_llm_recommender(model: LLMRecommender, checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """Load a checkpoint into a model built by the same configuration, and note there what it was trained on and under.

    Raises:
        UserError: no checkpoint there, of another version, a file was altered, or it belongs to something else.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint)
    checkpoint.check_belongs_to(belongs_to(model), type(model).__name__)
    model.item_tokens.load_state_dict(checkpoint.read_tensors())
    model.made_items_were_loaded()
    if model.llm_tuning == "lora":
        load_adapter(model.llm, checkpoint.path / ADAPTER)
    elif model.llm_tuning == "full":
        _load_whole_llm(model, checkpoint.path / LLM)
    model.trained_on = checkpoint.training_digest
    model.trained_prompts = checkpoint.facts.get("prompts_digest")
    if has_other_prompts(model):
        getLogger().warning(
            f"checkpoint {checkpoint.path} was trained under other prompts than those of this run, and may answer worse under these; "
            "give the prompt_file and domain that it was trained under"
        )
    return checkpoint


def has_other_prompts(model: LLMRecommender) -> bool:
    """Whether a model's weights were trained under other templates than it is asked with."""
    return model.trained_prompts not in (None, model.prompts_digest)


def load_adapter(llm: PeftModel, folder: Path) -> None:
    """PEFT's adapter file into an adapter of the same keys: every tensor, of its shape, and no other; its config is not read.

    Raises:
        UserError: the file's tensors are others.
    """
    saved = load_file(folder / "adapter_model.safetensors")
    if differing := differences(shapes(saved), shapes(get_peft_model_state_dict(llm))):
        raise UserError(
            f"adapter {folder}: {len(differing)} tensors differ from this run's lora keys, such as {differing[0]}; change lora_r, "
            "lora_target_modules or lora_layers"
        )
    set_peft_model_state_dict(llm, saved)


def _load_whole_llm(model: LLMRecommender, folder: Path) -> None:
    """A Hugging Face folder into an LLM that is tuned whole: every tensor there, of its shape, and no other."""
    # By the config of the LLM that stands: that of the folder might name another model, or code.
    options = {"config": model.llm.config, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    options |= {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    with progress_bars(False):
        saved, loaded = type(model.llm).from_pretrained(folder, output_loading_info=True, **options)
    wrong = {key: sorted(map(str, names)) for key, names in loaded.items() if names}
    if wrong:
        raise UserError(f"checkpoint {folder}: its tensors are not those of this LLM: {wrong}")
    model.llm.load_state_dict(saved.state_dict())
