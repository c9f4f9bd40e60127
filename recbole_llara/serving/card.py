"""The model card of a finished run: what it is, what it learned from, how well it answers, and what its folder holds.

Hugging Face's form: Markdown behind metadata in YAML, both by ``huggingface_hub``. Every figure is read from the run's folder.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from recbole_llara.checkpoint.run_folder import RECOMMENDER, RESULT, Request, read_result, told_request
from recbole_llara.checkpoint.weights import META, weights_sha256
from recbole_llara.config.keys import DECLARED, from_run, with_effect
from recbole_llara.config.models import is_llm_recommender, load_plugins
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.validation import FromRun
from recbole_llara.data.card import FRONT, facts_table, licence_text
from recbole_llara.data.numbering import read_numbering
from recbole_llara.evaluator.report import ABSENT, markdown_table, system_name
from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.utils.errors import UserError

LIBRARY = "recbole-llara"
OF_DATA = "The licence of the dataset goes with its titles and with what was learned from its interactions"
OF_LLM = "the licence of the base LLM goes with its weights"
CASES = ("cases.jsonl", "valid_cases.jsonl")
_NAMES = {"hit": "HitRatio", "ndcg": "NDCG", "mrr": "MRR", "validratio": "ValidRatio"}
_HEAD = ("protocol", "rec_model")  # keys on which the defaults of others depend; so they do on whether llm_path is tiny
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


def model_card(
    run: str | Path,
    folder: str | Path | None = None,
    weights: str = "as training left them",
    licence: str | None = None,
    plugins: Sequence[str] = (),
) -> ModelCard:
    """The card of a finished run of any model.

    Args:
        run: its folder, or an exported one.
        folder: what the card goes with, such as an export; None = the run's own folder.
        weights: of the LLM, in words: ``adapter merged, float32``.
        licence: an identifier as the Hugging Face hub knows it; None = the card asks its reader to fill it in.
        plugins: files that register the run's model, where it is one of your own.

    Raises:
        UserError: the folder is no finished run's, or its ``result.json`` lacks what a card tells.
    """
    load_plugins(list(plugins))
    path = Path(run).expanduser()
    result, request = read_result(path), told_request(path)
    place = path if folder is None else Path(folder)
    try:
        parts = _parts(result, request, place, weights, licence)
        data = _metadata(result, licence)
        return ModelCard.from_template(data, template_str=FRONT, content="\n\n".join(parts))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"run: {path / RESULT} does not tell what a card needs ({type(error).__name__}: {error}), expected the result of this "
            "version of recbole-llara; run it again, or evaluate its checkpoint by the key checkpoint"
        ) from error


def _metadata(result: Mapping[str, Any], licence: str | None) -> ModelCardData:
    """What the hub reads; no licence, base model or data set is named there that is not known to be one of the hub's."""
    dataset, name = result["dataset"], f"{system_name(result)} on {result['dataset']}"
    interval = result["interval_95"]
    args = {
        "n": result["n"],
        "interval_95": [interval["low"], interval["high"]],
        "candidates_sha256": result["candidate_sha256"]["test"],
    }
    measured = [
        EvalResult(
            task_type="sequential-recommendation",
            task_name="next item among candidates",
            dataset_type=dataset,
            dataset_name=f"{dataset}, {result['protocol']}",
            dataset_split="test",
            metric_type=key,
            metric_name=metric_name(key),
            metric_value=value,
            metric_args=args if key == "hit@1" else {"n": result["n"]},
        )
        for key, value in result["metrics"]["test"].items()
    ]
    return ModelCardData(
        library_name=LIBRARY,
        tags=["recommendation", "sequential-recommendation", "recbole", str(result["model"]).lower()],
        base_model=_base_model(result.get("llm")),
        license=licence,
        model_name=name,
        metrics=list(result["metrics"]["test"]),
        eval_results=measured,
    )


def metric_name(key: str) -> str:
    """``hit@1`` as people write it: HitRatio@1."""
    kind, at, k = key.partition("@")
    return _NAMES.get(kind, kind) + at + k


def _base_model(llm: str | None) -> str | None:
    """An LLM's id on the hub; None where only a name or folder of this machine is known."""
    is_id = llm is not None and _HUB_ID.fullmatch(llm) is not None and not Path(llm).exists()
    return llm.partition("@")[0] if is_id else None


def _parts(result: Mapping[str, Any], request: Request, folder: Path, weights: str, licence: str | None) -> Iterator[str]:
    """The card, a section at a time."""
    data = result["data"]
    count = data["candidates"]["candidate_num"]
    yield f"# {system_name(result)} on {result['dataset']}"
    yield (
        f"Names the next item of a user among {count} candidates, from the user's latest items. "
        f"Made by [RecBole](https://recbole.io) and {LIBRARY} {result['versions']['recbole_llara']}."
    )
    yield facts_table(_model_rows(result, weights))
    yield "## Intended use\n\n" + _intended(result, count)
    yield "## Data\n\n" + facts_table(_data_rows(result))
    yield "## Training\n\n" + facts_table(_training_rows(result, request))
    yield "## Results\n\n" + _results(result)
    yield "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(result))
    yield "## What this folder holds\n\n" + "\n".join(f"- {line}" for line in _holdings(result, folder))
    if digests := _digests(result, folder):
        yield "Weights, by SHA-256:\n\n" + facts_table(digests)
    others = OF_DATA if result.get("llm") is None or result.get("chat") else f"{OF_DATA}; {OF_LLM}"
    yield f"## Licence\n\n{licence_text(licence)} {others}: read this before you pass the folder on."


def _model_rows(result: Mapping[str, Any], weights: str) -> dict[str, Any]:
    rows: dict[str, Any] = {"model": result["model"]}
    if result.get("chat"):
        rows["LLM"] = f"{result['llm']}, behind an API; nothing was trained"
    elif result.get("llm") is not None:
        rows["base LLM"] = f"{_llm_name(result['llm'])}; weights: {weights}"
    read = result.get("recommender") or {}
    rows["recommender"] = result.get("rec_model") or ("proposes candidates only" if read else "none")
    if result.get("fusion"):
        told = result["fusion"]
        shares = ", ".join(f"{name} {weight:.4g}" for name, weight in told["weights"].items())
        rows["fusion"] = (
            f"log-probabilities are added: {shares}; temperature {told['temperature']:.4g}; fitted on {told['n']} validation rows"
        )
    if result.get("representation"):
        rows["an item in the prompt"] = result["representation"]
        rows["behind titles"] = ", ".join(result.get("item_fields") or ["nothing"])
        rows["decoding"] = result["decoding"]
    return rows


def _llm_name(llm: str) -> str:
    known = {"tiny": "the Llama of 3 million parameters that recbole-llara ships", "smollm2": "SmolLM2-135M-Instruct"}
    return known.get(llm) or (llm if _base_model(llm) else f"{Path(llm).name} (a folder of the machine that trained it)")


def _intended(result: Mapping[str, Any], count: int) -> str:
    use = (
        f"Research: comparing recommenders on the same rows and candidates, and ranking short lists (about {count} items) of the "
        f"catalogue of {result['dataset']} for a user's history. Not for decisions about people. Items outside that catalogue are "
        "unknown to it."
    )
    if result["model"] == "ChatLLM":
        return use
    return (
        f"{use}\n\n```python\nimport recbole_llara\n\n"
        'run = recbole_llara.load("this folder")\nrun.recommend(history=["a title", "another title"], k=5)\n```'
    )


def _data_rows(result: Mapping[str, Any]) -> dict[str, Any]:
    data = result["data"]
    rows, cold, drawn = data["rows"], data["unlearned_targets"], data["candidates"]
    held_out = data["held_out_items"]
    told = {
        "dataset": result["dataset"],
        "users, items": f"{data['users']:,}, {data['items']:,}",
        "interactions": f"{data['interactions']:,}; {data['pairs']:,} different pairs of user and item",
        "density": f"{data['density']:.4%} of all pairs",
        "popularity": f"Gini coefficient {data['gini']:.3f}; the most popular tenth of the items has {data['top_tenth']:.1%}",
        "protocol": result["protocol"],
        "rows": ", ".join(f"{split} {count:,}" for split, count in rows.items()),
        "candidates": f"{drawn['candidate_num']} a row, {_draw(drawn)}, seed {result['candidate_seed']}",
        "candidates of the test rows": f"SHA-256 {result['candidate_sha256']['test']}",
        "targets without training interactions": f"valid {cold['valid']:,}, test {cold['test']:,} rows",
    }
    if held_out is not None:
        told["items held out from training"] = f"valid {held_out['valid']:,}, test {held_out['test']:,}"
    return told


def _draw(drawn: Mapping[str, Any]) -> str:
    if drawn["candidate_file"] is not None:
        return f"from the file {Path(drawn['candidate_file']).name}"
    excluded = {"user": "what the user is known to have taken", "window": "the visible history"}[drawn["candidate_exclude"]]
    return f"the target and uniformly drawn items except {excluded}"


def _training_rows(result: Mapping[str, Any], request: Request) -> dict[str, Any]:
    told, timings, rows = result.get("training"), result["timings"], {}
    if told is not None:
        rows["trained"] = f"{told['rows']:,} rows (repeated ones counted) in {told['steps']:,} optimiser steps"
    if result.get("best_epoch") is not None:
        rows["weights of epoch"] = result["best_epoch"] + 1
    if "training_seconds" in timings:
        rows["training time"] = f"{timings['training_seconds']:,.0f} s, validation included"
    read = result.get("recommender") or {}
    if read.get("training_seconds"):
        rows["recommender's training time"] = f"{read['training_seconds']:,.0f} s"
    rows["seed"] = result["seed"]
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    given = own_keys(request)
    rows["keys other than the defaults"] = ", ".join(f"{key}: {_shown(key, value)}" for key, value in given.items()) or "none"
    return rows


def own_keys(request: Request) -> dict[str, Any]:
    """The keys of a run that a result depends on and whose values are not the defaults of its model, dataset and protocol.

    Where a model has no defaults without keys of its own (a chat model wants its endpoint), all keys that were given.
    """
    asked = without_secrets(with_effect(request.keys))
    head = {key: request.keys[key] for key in _HEAD if request.keys.get(key) is not None}
    if request.keys.get("llm_path", "tiny") != "tiny":
        head["llm_path"] = "another"  # whatever its name: a folder's words are not looked up
    titles = {"title_field": request.keys.get("title_field") or "title"}  # some column: a model that reads titles asks for one
    try:
        config = RunConfig(request.model, request.dataset, config_dict=head | titles, reads_data=False)
    except UserError:
        return dict(sorted(asked.items()))
    of_recommender = config.for_recommender() if is_llm_recommender(request.model) else None

    def default(key: str) -> Any:
        if key in DECLARED or of_recommender is None or not key.startswith("rec_"):
            return config[key]
        return of_recommender[key.removeprefix("rec_")]

    return {key: value for key, value in sorted(asked.items()) if key in head or value != default(key)}


def _shown(key: str, value: Any) -> str:
    """A key's value; of a path only the last part, for the others tell of a person's machine."""
    if isinstance(value, str) and "/" in value and from_run(key) is not FromRun.VALUE and _base_model(value) is None:
        return f"…/{Path(value).name}"
    return value if isinstance(value, str) else json.dumps(value)


def _results(result: Mapping[str, Any]) -> str:
    """The table of systems that answered the test rows, and all metrics."""
    n, metrics, interval = result["n"], result["metrics"]["test"], result["interval_95"]
    rows = [[system_name(result), *_interval_cells(interval), f"{metrics['validratio']:.4f}", str(n)]]
    for name, values in ((result.get("fusion") or {}).get("alone") or {}).items():
        alone = values["test"]
        rows.append(
            [f"{name} alone", *_interval_cells(vars(wilson_interval(round(alone["hit@1"] * n), n))), _valid(alone), str(n)]
        )
    recommender = ((result.get("recommender") or {}).get("metrics") or {}).get("test")
    if recommender and not result.get("fusion"):
        name = f"{result.get('rec_model') or 'recommender'}, when it was trained"
        rows.append([name, f"{recommender['hit@1']:.4f}", ABSENT, _valid(recommender), ABSENT])
    popular = result["data"]["popularity_hit"]["test"]
    of_popular = vars(wilson_interval(round(popular * n), n)) | {"share": popular}
    rows.append(["most popular candidate", *_interval_cells(of_popular), "1.0000", str(n)])
    rows.append(["chance", f"{1 / result['data']['candidates']['candidate_num']:.4f}", ABSENT, ABSENT, ABSENT])
    told = markdown_table(["system", "HitRatio@1", "95 % interval", "ValidRatio", "n"], rows)
    others = markdown_table(["metric", "test"], [[metric_name(key), f"{value:.4f}"] for key, value in metrics.items()])
    return (
        f"{told}\n\nHitRatio@1 is the share of test rows whose answer is the target; an answer that names no candidate is a miss. "
        "ValidRatio is the share of answers that name a candidate. The interval is Wilson's, over rows. The most popular "
        f"candidate is the one with most training interactions, ties by chance.\n\n{others}"
    )


def _interval_cells(interval: Mapping[str, float]) -> list[str]:
    return [f"{interval['share']:.4f}", f"{interval['low']:.3f} to {interval['high']:.3f}"]


def _valid(metrics: Mapping[str, float]) -> str:
    return f"{metrics['validratio']:.4f}" if "validratio" in metrics else ABSENT


def _limits(result: Mapping[str, Any]) -> Iterator[str]:
    data, popular = result["data"], result["data"]["popularity_hit"]["test"]
    count = data["candidates"]["candidate_num"]
    yield (
        f"The figures are of {count} candidates a row. They say little about ranking the whole catalogue of {data['items']:,} items, which "
        "the key full_rank measures."
    )
    yield (
        f"Candidate bias: uniformly drawn negatives are seldom popular, so the most popular candidate is the target in {popular:.4f} "
        f"of the test rows, where chance has {1 / count:.4f}. Compare with it."
    )
    yield (
        "The test rows' candidates exclude the user's other items. Training rows exclude only what training knows; "
        "`recbole-llara leaks` checks that no rule without a model finds the targets."
    )
    if repeated := result.get("trained_on_other_rows"):
        yield f"Trained on other interactions than this run's training rows ({', '.join(repeated)}): test rows may be among them."
    if data["unlearned_targets"]["test"]:
        yield f"{data['unlearned_targets']['test']:,} of {result['n']:,} test rows ask for an item that nobody took in training."
    yield "One seed: another seed gives another result. The interval covers the draw of the test rows only."
    yield "It repeats the biases of its data: popular items and the tastes of frequent users count more."


def _holdings(result: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What of people and of the catalogue somebody who gets the folder can read."""
    names = {name: folder / name for name in CASES if (folder / name).is_file()}
    if "cases.jsonl" in names or "valid_cases.jsonl" in names:
        yield "**Users' ids and histories**: in cases.jsonl. Delete it, or run with keep_cases False, before you pass the folder on."
    numbering = read_numbering(_checkpoint(result, folder), "run")
    users = 0 if numbering is None else len(numbering.users)
    if users:
        yield f"Hashes of {users:,} users' ids, with the weights. Short ids can be found from them by trying. `export` leaves them out."
    elif "cases.jsonl" not in names:
        yield "No user's id and no history."
    if numbering is not None:
        yield f"The ids of {len(numbering.items):,} items, their titles where the dataset has titles, and how many users took each in training."
    if _digests(result, folder):
        yield "Weights can repeat what they learned: titles, and which items are taken one after another."


def _checkpoint(result: Mapping[str, Any], folder: Path) -> Path:
    return folder / ("checkpoint" if is_llm_recommender(result["model"]) else "checkpoint.safetensors")


def _digests(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the weights that the folder holds."""
    place, found = _checkpoint(result, folder), {}
    if result.get("chat"):  # what is kept there are items
        return found
    if (place / META).is_file():
        sealed = json.loads((place / META).read_text(encoding="utf-8"))["sha256"]
        found = {f"{place.name}/{name}": digest for name, digest in sealed.items() if name.endswith(".safetensors")}
    elif place.is_file():
        found = {place.name: weights_sha256(place)}
    if (folder / RECOMMENDER).is_dir() and (result.get("recommender") or {}).get("sha256"):
        found[f"{RECOMMENDER}/"] = result["recommender"]["sha256"]
    return found
