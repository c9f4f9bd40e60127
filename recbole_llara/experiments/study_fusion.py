"""A system of a study that adds others: their answers to the validation and test rows are read, and nothing is trained.

Whichever systems are added, recommenders, LLMs or one recommender of two seeds, weights and temperature are fitted to the
validation rows alone, by ``evaluator.fusion``.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from recbole.evaluator import Collector, Evaluator

from recbole_llara.checkpoint.run_folder import RunFolder, read_records
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.evaluator.answer import EvaluatedCases
from recbole_llara.evaluator.evaluation import measure
from recbole_llara.evaluator.fusion import fit, fuse_cases
from recbole_llara.evaluator.result import build_result
from recbole_llara.utils.errors import UserError

Records = Sequence[Mapping[str, Any]]
ASKED = ("row", "user", "target", "candidates")  # of a record, what all systems are asked alike


def fuse_systems(name: str, config: RunConfig, files: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Answer the test rows by the sum of systems; returns the paths of the folder, the result and the cases that were written.

    Args:
        name: of the sum.
        config: that of one of the systems, for metrics and data.
        files: system -> split (``valid`` and ``test``) -> the file of its cases.

    Raises:
        UserError: the systems answered different questions, or what ``fit`` refuses.
    """
    started = perf_counter()
    records: dict[str, dict[str, Records]] = {
        split: {system: sorted(read_records(of[split]), key=lambda record: record["row"]) for system, of in files.items()}
        for split in ("valid", "test")
    }
    for of_systems in records.values():
        check_same_questions(of_systems)
    data = prepare_data(config)
    dataset, n_items = data.dataset, data.dataset.item_num
    answered = {
        split: {system: cases_of(own, dataset) for system, own in of_systems.items()} for split, of_systems in records.items()
    }
    fitted = answered["valid"]
    fusion = fit({system: cases.scores for system, cases in fitted.items()}, next(iter(fitted.values())).places)
    collector, evaluator = Collector(config), Evaluator(config)
    collector.data_collect(data.train_data)
    fused = {split: fuse_cases(fusion, list(of_systems.values())) for split, of_systems in answered.items()}
    metrics = {split: measure(collector, evaluator, n_items, cases) for split, cases in fused.items()}
    keys = {**config.final_config_dict, "model": name}
    folder = RunFolder.create(config["checkpoint_dir"], keys)
    tokens = dataset.field2id_token
    items = tokens[dataset.iid_field]
    titles = items if data.catalogue is None else data.catalogue.titles
    spelt = fused["test"].records(tokens[dataset.uid_field], items, titles, dataset.training_counts)
    cases_file = folder.write_records("cases.jsonl", spelt)
    result = build_result(
        keys,
        fused["test"],
        candidate_sha256=data.candidate_sha256,
        metrics=metrics,
        timings={"fusion_seconds": round(perf_counter() - started, 3)},
        fields={"fusion": {**fusion.result_fields(), "name": name}},
    )
    return {"run_dir": str(folder.path), "result_file": str(folder.write_result(result)), "cases_file": str(cases_file)}


def check_same_questions(of_systems: Mapping[str, Records]) -> None:
    """Refuse systems of which one was asked other rows or candidates than the first."""
    (first, own), *others = of_systems.items()
    for system, records in others:
        if [[record[key] for key in ASKED] for record in records] != [[record[key] for key in ASKED] for record in own]:
            raise UserError(
                f"fuses: {first} and {system} did not answer the same questions; a sum needs the same protocol, candidate_seed and "
                "max_eval_rows of all its systems"
            )


def cases_of(records: Records, dataset: Any) -> EvaluatedCases:
    """The answers that records of ``cases.jsonl`` tell, in their order, by the internal ids of a dataset."""
    items, users = (dataset.field2token_id[field] for field in (dataset.iid_field, dataset.uid_field))
    has_scores = bool(records) and records[0]["scores"] is not None
    longest = max((len(record["history"]) for record in records), default=0)

    def numbers(names: Sequence[str], width: int) -> list[int]:
        return [items[name] for name in names] + [0] * (width - len(names))

    return EvaluatedCases(
        items=torch.tensor([items[record["answer"]] if record["answer"] else 0 for record in records]),
        scores=torch.tensor([record["scores"] for record in records], dtype=torch.float64) if has_scores else None,
        rows=torch.tensor([record["row"] for record in records]),
        users=torch.tensor([users[record["user"]] for record in records]),
        histories=torch.tensor([numbers(record["history"], longest) for record in records]),
        candidates=torch.tensor([numbers(record["candidates"], len(record["candidates"])) for record in records]),
        targets=torch.tensor([items[record["target"]] for record in records]),
    )
