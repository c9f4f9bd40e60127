"""``recbole-llara export``: a finished run as a folder that others can use without its training machine.

It holds ``llm/`` (with ``--merge`` or full tuning: a plain Hugging Face folder) or PEFT's adapter, the projector and its like
(``checkpoint/``), the recommender, the items, and a model card. ``recbole_llara.load`` reads it, and ``run.yaml`` measures it again.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from recbole_llara.config.settings import ids_file, vectors_file
from recbole_llara.utils.atomic import write_folder
from recbole_llara.utils.errors import UserError

COPIED = ("result.json", "config.yaml")
DTYPES = ("float32", "bfloat16", "float16")
LLM, CHECKPOINT, RECOMMENDER, CARD, KEYS, PROMPTS = (
    "llm", "checkpoint", "recommender/model.safetensors", "README.md", "run.yaml", "prompts.yaml",
)  # fmt: skip


def export(run: str | Path, output: str | Path, merge: bool = False, dtype: str = "float32", **keys: Any) -> Path:
    """Write a run's folder for others, and return it.

    Args:
        run: the folder of a finished run of an LLM recommender.
        output: a folder that is not there yet.
        merge: fold LoRA's adapter into the LLM's weights.
        dtype: of the merged weights; less than float32 rounds them.
        keys: over the run's own, such as ``data_path``.

    Raises:
        UserError: the run has no LLM, its weights are quantised and were to be merged, or ``output`` is there.
    """
    from recbole_llara.checkpoint.run_folder import read_result
    from recbole_llara.model.base import LLMRecommender
    from recbole_llara.serving.loaded import load

    path, output = Path(run).expanduser(), Path(output).expanduser()
    if output.exists():
        raise UserError(f"output: {output} is there already, expected a folder to be made")
    if dtype not in DTYPES:
        raise UserError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    loaded = load(path, **keys)
    model = loaded.model
    if not isinstance(model, LLMRecommender):
        raise UserError(f"run: {path} is one of {loaded.config['model']}, expected a run of an LLM recommender")
    if merge and model.llm_quantization != "none":
        raise UserError(f"merge: the LLM is held in {model.llm_quantization}, expected whole weights; export without merge")
    for name in COPIED:
        if (path / name).is_symlink():  # it would carry a file of this machine along
            raise UserError(f"run: {path / name} is a link, expected a file of the run")
    is_whole = model.llm_tuning == "full" or (merge and model.llm_tuning == "lora")
    source, trusts = Path(loaded.config["checkpoint"] or path / CHECKPOINT), loaded.config["llm_trust_remote_code"]

    def fill(folder: Path) -> None:
        if is_whole:
            _write_llm(model, source, folder / LLM, dtype, trusts)
        _write_checkpoint(model, source, folder, is_whole, trusts)
        relative = {"checkpoint": CHECKPOINT} | ({"llm_path": LLM} if is_whole else {})
        if model.recommender is not None:
            relative |= _write_recommender(model.recommender.path, loaded.config["item_embeddings"], folder)
        if loaded.config["prompt_file"] is not None:
            shutil.copyfile(Path(loaded.config["prompt_file"]).expanduser(), folder / PROMPTS)
            relative["prompt_file"] = PROMPTS
        _write_items(loaded.names.ids, loaded.names.titles, folder / "items.tsv")
        settled = {key: value for key, value in _settled(loaded.config, is_whole).items() if key not in relative}
        result = read_result(path)
        for name in COPIED:
            shutil.copyfile(path / name, folder / name)
        head = {"model": loaded.config["model"], "dataset": loaded.config["dataset"]}
        _write_yaml(
            folder / "request.yaml",
            {"version": result["versions"]["recbole_llara"], **head, "keys": settled, "relative": relative},
        )
        absolute = {key: str(output.resolve() / name) for key, name in relative.items()}
        _write_yaml(folder / KEYS, {**head, **settled, **absolute})
        (folder / CARD).write_text(
            model_card(result, model.llm_path, model.llm_tuning, merge, dtype, settled), encoding="utf-8"
        )

    return write_folder(output, fill)


def _write_llm(model: Any, source: Path, folder: Path, dtype: str, trusts: bool) -> None:
    """The tuned LLM as a plain Hugging Face folder."""
    import torch
    from peft import get_peft_model

    from recbole_llara.checkpoint.weights import ADAPTER
    from recbole_llara.llm.loading import load_llm
    from recbole_llara.model.weights import load_adapter

    kind = getattr(torch, dtype)
    if model.llm_tuning == "full":
        llm = model.llm
    else:
        base, _ = load_llm(model.llm_path, dtype="float32", trust_remote_code=trusts, llm_tuning="full")
        llm = get_peft_model(base, deepcopy(model.llm.peft_config["default"]))
        load_adapter(llm, source / ADAPTER)
        llm = llm.merge_and_unload()
    llm.to(kind).save_pretrained(folder)
    llm.to(torch.float32)
    model.tokenizer.save_pretrained(folder)


def _write_recommender(path: Path, item_embeddings: str, folder: Path) -> dict[str, str]:
    """The recommender's weights, or the table of vectors with its ids; returns the key that names it, and its place."""
    (folder / RECOMMENDER).parent.mkdir()
    if vectors_file(item_embeddings) is None:
        shutil.copyfile(path / "model.safetensors" if path.is_dir() else path, folder / RECOMMENDER)
        return {"rec_checkpoint": RECOMMENDER}
    place = Path(RECOMMENDER).with_name(path.name)
    shutil.copyfile(path, folder / place)
    shutil.copyfile(ids_file(path), folder / ids_file(place))
    return {"item_embeddings": str(place)}


def _write_checkpoint(model: Any, source: Path, folder: Path, is_whole: bool, trusts: bool) -> None:
    """The checkpoint as it is, or for an LLM of its own what lies beside it."""
    from recbole_llara.checkpoint.identity import llm_digest, tokenizer_digest
    from recbole_llara.checkpoint.weights import ITEM_TOKENS, META, read_checkpoint
    from recbole_llara.data import numbering
    from recbole_llara.llm.loading import load_llm

    if not is_whole:
        shutil.copytree(source, folder / CHECKPOINT)
        return
    meta = read_checkpoint(source).facts
    llm, tokenizer = load_llm(str(folder / LLM), trust_remote_code=trusts)
    (folder / CHECKPOINT).mkdir()
    for name in (ITEM_TOKENS, numbering.FILE):
        shutil.copyfile(source / name, folder / CHECKPOINT / name)
    meta["belongs_to"] |= {
        "llm_tuning": "frozen", "llm_digest": llm_digest(llm), "tokenizer_digest": tokenizer_digest(tokenizer),
    }  # fmt: skip
    meta["sha256"] = {name: meta["sha256"][name] for name in (ITEM_TOKENS, numbering.FILE)}
    (folder / CHECKPOINT / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _settled(config: Any, is_whole: bool) -> dict[str, Any]:
    """Every key that a measurement depends on, so that another llm_path brings no other defaults."""
    from recbole_llara.config.keys import from_run
    from recbole_llara.config.secrets import without_secrets
    from recbole_llara.config.settings import (
        DataSettings,
        EvaluationSettings,
        LLMSettings,
        OptimSettings,
        PromptSettings,
        RecommenderSettings,
        declared,
    )
    from recbole_llara.config.validation import FromRun
    from recbole_llara.utils.hashing import json_ready

    kinds = (DataSettings, EvaluationSettings, LLMSettings, OptimSettings, PromptSettings, RecommenderSettings)
    names = declared(*kinds).keys() - {"resume", "checkpoint", "rec_checkpoint", "result_file"}
    given = {key: value for key, value in config.external_config_dict.items() if key not in ("resume", "result_file", "state")}
    keys = json_ready(without_secrets({**given, **{name: config[name] for name in names}}))
    places = ("checkpoint", "rec_checkpoint", "show_progress")
    keys = {key: value for key, value in keys.items() if key not in places and from_run(key) is not FromRun.NEVER}
    return keys | ({"llm_tuning": "frozen"} if is_whole else {})


def _write_items(ids: Sequence[str], titles: Sequence[str], path: Path) -> None:
    lines = [f"{item}\t{title}" for item, title in list(zip(ids, titles, strict=True))[1:]]
    path.write_text("\n".join(["item_id\ttitle", *lines]) + "\n", encoding="utf-8")


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False), encoding="utf-8")


def model_card(
    result: Mapping[str, Any], llm_path: str, llm_tuning: str, is_merged: bool, dtype: str, keys: Mapping[str, Any]
) -> str:
    """The card of an exported run, in Markdown with the front matter that the Hugging Face hub reads."""
    interval = result["interval_95"]
    base = "the Llama that recbole-llara ships" if llm_path == "tiny" else f"`{llm_path}`"
    held = (
        f"adapter merged, {dtype}"
        if is_merged and llm_tuning == "lora"
        else {"full": f"tuned whole, {dtype}"}.get(llm_tuning, "as it is")
    )
    metrics = "\n".join(f"| {name} | {value} |" for name, value in result["metrics"]["test"].items())
    return f"""---
library_name: recbole-llara
tags: [recommendation, sequential-recommendation, recbole]
---
# {result["model"]} on {result["dataset"]}

Names the next item among {keys.get("candidate_num", 20)} candidates from a history of titles. Made by
recbole-llara {result["versions"]["recbole_llara"]}.

| | |
|---|---|
| base LLM | {base}, {held} |
| recommender | {result.get("rec_model") or "none"} |
| representation | {result.get("representation")} |
| dataset, protocol | {result["dataset"]}, {result["protocol"]} |
| seed | {result["seed"]}, candidates {result["candidate_seed"]} |

## Measured

HitRatio@1 {interval["share"]:.4f} (95 % interval {interval["low"]:.4f} to {interval["high"]:.4f}), n = {result["n"]} test rows;
{result["valid_answers"]} answers named a candidate. Candidates of the test rows: SHA-256 `{result["candidate_sha256"]["test"]}`.

| metric | test |
|---|---|
{metrics}

## Use

    import recbole_llara
    recbole_llara.load("this folder").recommend(history=["a title", "another"], k=5)

    python run_recbole_llara.py --config_files=this_folder/{KEYS}   # measures it again; paths stand in {KEYS}

Both need the dataset `{result["dataset"]}` in `data_path`.

## Licence

The licence of the base LLM goes with its weights, and that of the dataset with the titles in `items.tsv` and with what was
learned from its interactions: read both before you pass this on.
"""
