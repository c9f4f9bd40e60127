"""Candidates out of what the frozen recommender proposes: of training rows, as ``candidate_draw`` asks for, and in files of questions.

For each training row the recommender ranks all items that can be a negative of it; the first ``candidate_draw_top`` are kept, and
``data.candidates`` draws from them. The table tells nothing of validation and test rows: it rests on the row's history, on what the
training rows know of its user, and on a recommender that learned from training rows: under ``recommender_rows: earlier`` from
earlier rows than those for which it proposes. It lies in ``<checkpoint_dir>/proposals/``
under a digest of all that it depends on, so that a resumed run, and the processes of one run, draw the same.

A file of questions has for each validation and test row C - 1 items of those that the recommender puts first, and the target.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recbole_llara.config.keys import answering_keys
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import UNIFORM, RecommenderSettings
from recbole_llara.data.candidates import CandidateSampler, Proposals, as_tsv
from recbole_llara.data.dataset import ROW_FIELD, CandidateDataset, PreparedData
from recbole_llara.data.numbering import Numbering
from recbole_llara.data.rows import Rows
from recbole_llara.llm.loading import first_line
from recbole_llara.recommender.frozen import Recommender, recommender_and_model
from recbole_llara.recommender.retriever import Retriever
from recbole_llara.utils.atomic import sole_writer, write_file
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import facts_sha256, json_ready

FORMAT = 1  # raise it when the meaning of a file changes


def with_proposals(config: RunConfig, data: PreparedData) -> tuple[PreparedData, Recommender | None]:
    """The data of an LLM recommender, with a sampler that draws training rows' candidates as ``candidate_draw`` says.

    Returns:
        the data, as they are where the draw is uniform; and the recommender that proposes, None where none does.

    Raises:
        UserError: as ``prepare_recommender``.
    """
    settings = RecommenderSettings.from_config(config)
    if settings.candidate_draw == UNIFORM:
        return data, None
    recommender, model = recommender_and_model(config, data, of_training=True)
    retriever = Retriever(model.to(config["device"]), config.for_recommender(), data.sampler.n_items)
    proposals = _cached(config, data, recommender, retriever, settings.candidate_draw_top)
    negatives = data.sampler.candidate_num - 1
    proposed_num = negatives if settings.candidate_draw == "recommender" else (negatives + 1) // 2
    sampler = replace(data.sampler, proposals=proposals, proposed_num=proposed_num)
    return replace(data, sampler=sampler), recommender


@dataclass(frozen=True)
class ProposedQuestions:
    """Candidate sets of validation and test that are some of a recommender's first items, and the target."""

    content: bytes  # the file, for ``candidate_file``
    recommender: Recommender
    rows: Mapping[str, int]  # of valid and test
    proposed: Mapping[str, float]  # of valid and test: the share of rows whose target is itself among the first


def proposed_questions(config: RunConfig, data: PreparedData, top: int) -> ProposedQuestions:
    """Let the recommender of a run propose the candidates of validation and test rows.

    The items stand in an order of the row's own numbers, the target's place is that of a uniform draw: the order tells nothing.

    Args:
        top: (int, items) the negatives are drawn from the first so many; C - 1 takes them all.

    Raises:
        UserError: as ``prepare_recommender``, or rows that a file cannot tell apart.
    """
    recommender, model = recommender_and_model(config, data)
    retriever = Retriever(model.to(config["device"]), config.for_recommender(), data.sampler.n_items)
    content, n_rows, shares = b"", {}, {}
    for split, loader in (("valid", data.valid_data), ("test", data.test_data)):
        dataset = loader.dataset
        numbers, rows = _in_order(dataset)
        sampler = dataset.candidate_sampler(split, dataset.protocol.eval_seed)
        proposals, shares[split] = propose(retriever, sampler, numbers, rows, top)
        drawn = replace(sampler, proposals=proposals, proposed_num=sampler.candidate_num - 1).draw(numbers, rows, split)
        tokens = dataset.field2id_token
        content += as_tsv(rows, drawn, tokens[dataset.uid_field], tokens[dataset.iid_field])
        n_rows[split] = len(numbers)
    pairs = [tuple(line.split(b"\t")[:2]) for line in content.split(b"\n") if line]
    repeats = len(pairs) - len(set(pairs)) - 1  # the header stands there twice
    if repeats:
        raise UserError(
            f"candidate_file: {repeats} validation and test rows have the user and target of another row, expected none: a file cannot tell "
            "them apart; set repeated_targets to drop"
        )
    return ProposedQuestions(content, recommender, n_rows, shares)


def _in_order(dataset: CandidateDataset) -> tuple[np.ndarray, Rows]:
    """The rows of a split by their numbers, which ascend."""
    numbers = dataset.inter_feat[ROW_FIELD].numpy()
    order = np.argsort(numbers, kind="stable")
    return numbers[order], dataset.rows_of(dataset.inter_feat).take(order)


def _cached(config: RunConfig, data: PreparedData, recommender: Recommender, retriever: Retriever, top: int) -> Proposals:
    """The proposals for the training rows, out of the folder of all runs or made now."""
    (numbers, rows), sampler = _in_order(data.dataset), data.sampler
    keys = answering_keys(retriever.config["model"])
    facts = {
        "format": FORMAT,
        "recommender": (recommender.model, recommender.sha256),
        "keys": {key: retriever.config[key] for key in sorted(keys)},
        "items": Numbering.of(data.dataset).items_sha256,
        "draw": (top, sampler.exclude, sampler.n_items),
    }
    digest = hashlib.sha256(facts_sha256(json_ready(facts)).encode())
    for values in (numbers, *vars(rows).values(), sampler.seen.keys):
        digest.update(np.ascontiguousarray(values.astype("<i8")))
    path = Path(config["checkpoint_dir"]) / "proposals" / f"{config['dataset']}-{digest.hexdigest()[:16]}.safetensors"
    with sole_writer(path):  # processes started together wait for the one that ranks
        if path.exists():
            try:
                return _read(path)
            except (SafetensorError, OSError, ValueError) as error:
                getLogger().warning(f"The cached proposals {path} are damaged ({first_line(error)}): they are made again")
        started = perf_counter()
        proposals, share = propose(retriever, sampler, numbers, rows, top)
        tensors = {"rows": proposals.rows, "items": proposals.items}
        write_file(path, lambda place: save_file(tensors, place, metadata={"sha256": proposals.sha256}))
        getLogger().info(
            f"{recommender.model} proposes {proposals.items.shape[1]} items for each of {len(numbers)} training rows, kept in {path} "
            f"({perf_counter() - started:.0f} s); in {share:.1%} of the rows the target itself is among its first {top}"
        )
    return proposals


def _read(path: Path) -> Proposals:
    with safe_open(path, framework="np") as file:
        told, proposals = (file.metadata() or {}).get("sha256"), Proposals(file.get_tensor("rows"), file.get_tensor("items"))
    if told != proposals.sha256:
        raise ValueError("they are not those whose SHA-256 it tells")
    return proposals


def propose(
    retriever: Retriever, sampler: CandidateSampler, numbers: np.ndarray, rows: Rows, top: int
) -> tuple[Proposals, float]:
    """What a retriever puts first for rows, of the items that can be their negatives.

    Args:
        numbers: [R] of the rows, ascending.
        top: (int, items) at most so many a row.

    Returns:
        the proposals, and the share of the rows whose target would have been among them.
    """
    kept, ranked = [], 0
    for first in range(0, len(numbers), retriever.at_once):
        part = rows.take(slice(first, first + retriever.at_once))
        position, item = sampler.excluded(part)
        others = item != part.targets[position]
        history, users = torch.from_numpy(part.history), torch.from_numpy(part.users)
        items = retriever.best(history, users, position[others], item[others], top + 1).numpy()  # [b, top + 1]
        is_target = items == part.targets[:, None]
        ranked += int(is_target[:, :top].any(axis=1).sum())
        # The target goes to the end, which is cut off.
        order = np.argsort(is_target, axis=1, kind="stable")[:, :-1]
        kept.append(np.take_along_axis(items, order, axis=1).astype(np.int32))
    return Proposals(numbers, np.concatenate(kept)), ranked / len(numbers)
