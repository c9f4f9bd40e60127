"""``recbole-llara export``: a finished run as a folder that others can use without its training machine.

It holds ``llm/`` (with ``--merge`` or full tuning: a plain Hugging Face folder) or PEFT's adapter, the projector and its like
(``checkpoint/``), the recommender, the items, and a model card. ``recbole_llara.load`` reads it, and ``run.yaml`` measures it again.
"""

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_llara.checkpoint.run_folder import CONFIG, PROMPTS, RECOMMENDER, REQUEST, RESULT, read_result
from recbole_llara.checkpoint.weights import (
    ADAPTER,
    ITEM_TOKENS,
    META,
    forget_users,
    llm_digest,
    read_checkpoint,
    tokenizer_digest,
)
from recbole_llara.config.keys import from_run
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.settings import (
    VECTORS,
    VLLM,
    DataSettings,
    EvaluationSettings,
    LLMSettings,
    LossSettings,
    OptimSettings,
    PromptSettings,
    RecommenderSettings,
    declared,
    ids_file,
)
from recbole_llara.config.validation import FromRun
from recbole_llara.data.numbering import FILE
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.llm.loading import is_quantized, load_llm
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.engine_client import FOLDER
from recbole_llara.model.kept import PIECES
from recbole_llara.model.weights import load_adapter
from recbole_llara.recommender.frozen import META as SEAL
from recbole_llara.recommender.frozen import seal, unseal
from recbole_llara.serving.card import model_card
from recbole_llara.serving.engine_export import write_served
from recbole_llara.serving.loaded import own_files, read_run
from recbole_llara.utils.atomic import write_folder
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import json_ready

OPTIONAL = (RECOMMENDER, PROMPTS)
DTYPES = ("float32", "bfloat16", "float16")
LLM, CHECKPOINT, KEYS = "llm", "checkpoint", "run.yaml"
# A measurement depends on the keys of these and on those given, less the folder's own places and what concerns one machine.
_MEASURED = (DataSettings, EvaluationSettings, LLMSettings, LossSettings, OptimSettings, PromptSettings, RecommenderSettings)
_PLACES = frozenset({"resume", "result_file", "state", "checkpoint", "rec_checkpoint", "show_progress"})


def export(
    run: str | Path, output: str | Path, merge: bool = False, dtype: str = "float32", engine: str | None = None, **keys: Any
) -> Path:
    """Write a run's folder for others, and return it.

    Args:
        run: the folder of a finished run of an LLM recommender.
        output: a folder that is not there yet.
        merge: fold LoRA's adapter into the LLM's weights.
        dtype: of the merged weights; less than float32 rounds them.
        engine: vllm = write the LLM for a server of vLLM too, merged and with the run's tokens in its vocabulary; see ``engine_export``.
        keys: over the run's own, such as ``llm_path``.

    Raises:
        UserError: the run has no LLM, its weights are quantised and were to be merged, ``output`` is there, another recommender is
            asked for, or tokens of new items rest on embeddings that a whole tuned LLM no longer has.
    """
    path, output = Path(run).expanduser(), Path(output).expanduser()
    if output.exists():
        raise UserError(f"output: {output} is there already, expected a folder to be made")
    if dtype not in DTYPES:
        raise UserError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    if keys.get("rec_checkpoint"):
        raise UserError("rec_checkpoint: the recommender kept with the run is exported, expected no other")
    loaded = read_run(path, **keys)
    config, model = loaded.config, loaded.model
    if not isinstance(model, LLMRecommender):
        raise UserError(f"run: {path} is one of {config['model']}, expected a run of an LLM recommender")
    if engine not in (None, VLLM):
        raise UserError(f"for: found {engine!r}, expected {VLLM}")
    if (merge or engine) and is_quantized(causal_lm(model.llm)):
        raise UserError(
            f"{'merge' if merge else 'for'}: the LLM's weights are held quantised, expected whole ones; export without merge"
        )
    for name in (RESULT, CONFIG, *OPTIONAL):
        for file in (path / name, *(path / name).glob("*")):
            if file.is_symlink():  # it would carry a file of this machine along
                raise UserError(f"run: {file} is a link, expected a file of the run")
    merges = merge and model.llm_tuning == "lora"
    is_whole = merges or model.llm_tuning == "full"
    source, trusts = Path(config["checkpoint"] or path / CHECKPOINT), config["llm_trust_remote_code"]
    result = read_result(path)

    def fill(folder: Path) -> None:
        relative = {"checkpoint": CHECKPOINT}
        if is_whole:
            relative["llm_path"] = LLM
            _write_llm(model, source, folder / LLM, dtype, trusts)
            _write_item_tokens(source, folder / CHECKPOINT, *load_llm(str(folder / LLM), trust_remote_code=trusts))
        else:
            shutil.copytree(source, folder / CHECKPOINT)
        forget_users(folder / CHECKPOINT)
        if engine:
            write_served(loaded, _tuned_llm(model, source, trusts), folder / CHECKPOINT, folder / FOLDER, dtype)
        for name in (CONFIG, *OPTIONAL):
            if (path / name).is_dir():
                shutil.copytree(path / name, folder / name)
            elif (path / name).is_file():
                shutil.copyfile(path / name, folder / name)
        _write_result(result, folder)
        own = own_files(folder, {})
        relative |= {key: str(Path(place).relative_to(folder)) for key, place in own.items() if place is not None}
        items = [f"{item}\t{title}\n" for item, title in zip(loaded.names.ids, loaded.names.titles, strict=True)]
        (folder / "items.tsv").write_text("".join(["item_id\ttitle\n", *items[1:]]), encoding="utf-8")
        head = {"model": config["model"], "dataset": config["dataset"]}
        settled = _settled(config) | ({"llm_tuning": "frozen", "llm_layers": None} if is_whole else {})
        settled = {key: value for key, value in settled.items() if key not in relative}
        version = {"version": result["versions"]["recbole_llara"]}
        _write_yaml(folder / REQUEST, {**version, **head, "keys": settled, "relative": relative})
        _write_yaml(folder / KEYS, {**head, **settled, **{key: str(output.resolve() / name) for key, name in relative.items()}})
        weights = f"adapter merged, {dtype}" if merges else f"tuned whole, {dtype}" if is_whole else "as it is"
        weights += "" if model.llm_layers is None else f", llm_layers {json_ready(model.llm_layers)}"
        card = model_card(path, folder, weights, plugins=keys.get("plugins") or ())
        (folder / "README.md").write_text(f"{card}\n{_again(result)}", encoding="utf-8")

    return write_folder(output, fill)


def _tuned_llm(model: LLMRecommender, source: Path, trusts: bool) -> PreTrainedModel:
    """The tuned LLM, plain and in float32."""
    if model.llm_tuning == "full":
        return model.llm
    base, _ = load_llm(
        model.llm_path, dtype="float32", trust_remote_code=trusts, llm_tuning="full", llm_layers=model.llm_layers
    )
    if model.llm_tuning == "frozen":
        return base
    llm = get_peft_model(base, deepcopy(model.llm.peft_config["default"]))
    load_adapter(llm, source / ADAPTER)
    return llm.merge_and_unload()


def _write_llm(model: LLMRecommender, source: Path, folder: Path, dtype: str, trusts: bool) -> None:
    """The tuned LLM as a plain Hugging Face folder."""
    _tuned_llm(model, source, trusts).to(getattr(torch, dtype)).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _write_item_tokens(source: Path, folder: Path, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """What of a checkpoint lies beside its LLM, for an LLM that is tuned already."""
    meta = read_checkpoint(source).facts
    folder.mkdir()
    kept = (ITEM_TOKENS, FILE, PIECES)
    for name in kept:
        shutil.copyfile(source / name, folder / name)
    digests = {"llm_digest": llm_digest(llm), "tokenizer_digest": tokenizer_digest(tokenizer)}
    meta["belongs_to"] |= {"llm_tuning": "frozen", **digests}
    meta["sha256"] = {name: meta["sha256"][name] for name in kept}
    (folder / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _write_result(result: Mapping[str, Any], folder: Path) -> None:
    """The run's result, its recommender being the one beside it, which tells no user where it has no table of users."""
    told, files = dict(result), sorted((folder / RECOMMENDER).glob("*"))
    if files:
        path = next(path for path in files if path.suffix in (*VECTORS, ".pth"))
        if path.suffix == ".safetensors" and ids_file(path) not in files:
            facts = unseal(path.parent) if path.with_name(SEAL) in files else None
            forget_users(path)
            if facts is not None:
                seal(path.parent, facts)
        told["recommender"] = {**result["recommender"], "path": f"{RECOMMENDER}/{path.name}"}
    (folder / RESULT).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _settled(config: Any) -> dict[str, Any]:
    """Every key that a measurement depends on, so that another llm_path brings no other defaults."""
    keys = config.external_config_dict | {name: config[name] for name in declared(*_MEASURED)}
    keys["candidate_file"] = config.external_config_dict.get("candidate_file")  # which answers do not need, and measurements do
    if "topk" not in config.external_config_dict:  # as a default it may be beyond candidate_num, as a given key not
        del keys["topk"]
    keys = json_ready(without_secrets(keys))
    return {key: value for key, value in keys.items() if key not in _PLACES and from_run(key) is not FromRun.NEVER}


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _again(result: Mapping[str, Any]) -> str:
    """How the results are measured again."""
    return f"""
## Measure it again

```bash
python run_recbole_llara.py --config_files=this_folder/{KEYS}
```

It takes the dataset `{result["dataset"]}` in `data_path`; the paths stand in `{KEYS}`.
"""
