"""What an LLM's knowledge of titles, and a user's whole history, can add to a recommender, by a reader that is made for nothing else.

    python tests/benchmarks/bench_knowledge.py --dataset=ml-100k --llm_path=smollm2 [--seed=2020] [--key=value ...]

The frozen LLM reads each title; its states of four depths, averaged over the title, are what it knows of the item. A small model learns
to add to the recommender's log-probabilities of the candidates how well such vectors of the history fit that of the candidate, how
popular the candidate is, or how well it fits all that the user had before, also what is older than the history that the recommender
reads: the three numbers that a score token tells an LLM of EASE, which is what LLaRA over EASE has to be ahead of. It learns from
training rows that the recommender has not learned from (recommender_rows earlier), the epoch is chosen by the validation rows (the last
line fits EASE's three numbers on these alone, as a sum's weights are), and every line is tested against the first, in which only a
temperature is fitted. Where "text" gains nothing over "text of other items", this model has found nothing in the titles that the recommender lacks.

Minutes on two cores, the training of the recommenders aside.
"""

import logging
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from recbole_llara.config.models import model_defaults
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.data.dataset import PLACE_FIELD, PreparedData, prepare_data
from recbole_llara.evaluator.fusion import fit
from recbole_llara.evaluator.significance import mcnemar
from recbole_llara.llm.architecture import causal_lm
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import build_model
from recbole_llara.recommender.closed_form import item_weights, user_items
from recbole_llara.recommender.frozen import learned_data

DEPTHS, WIDTH = 4, 48  # layers of the LLM that are read, evenly spread; principal components kept of each
RANK, EPOCHS, DRAWS = 64, 12, 3  # of the reader's products; draws of candidates of each training row
EASE = model_defaults("EASE")
BANDS = ((0, 5), (6, 20), (21, 10**9))  # users who took the target in training
KEYS = {
    "protocol": "leave_one_out",
    "rec_eval_step": 1,
    "rec_stopping_step": 3,
    "recommender_rows": "earlier",
    "answer_loss": "listwise",
    "listwise_prior": "recommender",
    "train_batch_size": 256,
    "show_progress": False,
}


class Asked(NamedTuple):
    """Questions, and what the recommender says of them."""

    history: torch.Tensor  # [B, L], 0-padded on the right
    candidates: torch.Tensor  # [B, C]
    targets: torch.Tensor  # [B] columns
    log_probs: torch.Tensor  # [B, C]
    whole: torch.Tensor  # [B, C, 3] EASE's log-probability by all that the user had before, its probability and 1 / (1 + rank)


class Reader(nn.Module):
    """Scores [B, C]: ``w log p + text(history, candidate) + popularity(candidate) + whole w'``, the last three where they are wanted.

    Args:
        states: [N, D] of titles; None = no text.
        counts: [N] users who took each item in training; None = no popularity.
        reads_whole: whether the whole history is read.
    """

    def __init__(self, states: torch.Tensor | None, counts: torch.Tensor | None, reads_whole: bool) -> None:
        super().__init__()
        self.states, self.counts, self.reads_whole = states, counts, reads_whole
        self.weights, self.of_whole = nn.Parameter(torch.tensor([1.0, 0.0, 0.0])), nn.Parameter(torch.zeros(3))
        if states is not None:
            width = states.shape[1]
            self.of_history, self.of_candidate = (nn.Linear(width, RANK, bias=False) for _ in range(2))
            for layer in (self.of_history, self.of_candidate):
                nn.init.normal_(layer.weight, std=0.01)
            self.recency, self.dropout = nn.Parameter(torch.zeros(1000)), nn.Dropout(0.2)

    def forward(self, asked: Asked) -> torch.Tensor:
        """[B, C]"""
        scores = self.weights[0] * asked.log_probs
        if self.counts is not None:
            counts = self.counts[asked.candidates]
            scores = scores + self.weights[1] * counts.log1p() + self.weights[2] * (counts <= BANDS[0][1])
        if self.reads_whole:
            scores = scores + asked.whole @ self.of_whole
        if self.states is not None:
            present = asked.history > 0
            from_the_end = (present.flip(1).cumsum(1).flip(1) - 1).clamp(min=0)
            shares = self.recency[from_the_end].masked_fill(~present, -torch.inf).softmax(1)  # [B, L]
            user = (shares[:, :, None] * self.dropout(self.states[asked.history])).sum(1)  # [B, D]
            item = self.of_candidate(self.dropout(self.states[asked.candidates]))  # [B, C, RANK]
            scores = scores + torch.einsum("br,bcr->bc", self.of_history(user), item)
        return scores


@torch.no_grad()
def title_states(llm: nn.Module, tokenizer: PreTrainedTokenizerBase, titles: list[str]) -> torch.Tensor:
    """[N, DEPTHS * WIDTH]: principal components of an LLM's states, averaged over each title's tokens."""
    depths = np.linspace(0, llm.config.get_text_config().num_hidden_layers, DEPTHS).round().astype(int)
    found = []
    for first in range(0, len(titles), 64):
        tokens = tokenizer(titles[first : first + 64], return_tensors="pt", padding=True)
        mask = tokens["attention_mask"][:, :, None].float()  # [B, T, 1]
        states = llm(**tokens, output_hidden_states=True).hidden_states
        found.append(torch.stack([(states[depth].float() * mask).sum(1) / mask.sum(1).clamp(min=1) for depth in depths], 1))
    parts = []
    for states in torch.cat(found).unbind(1):  # [N, hidden] of a depth
        scaled = (states - states[1:].mean(0)) / states[1:].std(0).clamp(min=1e-6)
        directions, sizes, _ = torch.pca_lowrank(scaled, WIDTH)
        parts.append(directions * sizes / sizes.mean() * WIDTH**0.5 / 2)
    return torch.cat(parts, 1)


class WholeHistories:
    """What EASE says of candidates by all that their user had before, its weights being learned from the recommender's own rows."""

    def __init__(self, config: RunConfig, data: PreparedData, of_training: bool) -> None:
        users, self.items = (torch.from_numpy(values) for values in data.dataset.interactions())  # [M] by user and time
        self.first = torch.searchsorted(users, users)  # [M] the place of each one's user's first
        learned = learned_data(config, config.for_recommender(), data, of_training).dataset
        rows = learned.inter_feat
        columns = rows[learned.uid_field], rows[learned.iid_field], rows[learned.item_id_list_field]
        self.weights = item_weights(*user_items(*columns, learned.item_num), learned.item_num, EASE["reg_weight"])

    def __call__(self, places: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """[B, C, 3] of candidates [B, C] for targets at places [B] among all interactions; see ``Asked``."""
        had = torch.zeros(len(places), len(self.weights))
        for row, place in enumerate(places.tolist()):
            had[row, self.items[self.first[place] : place]] = 1
        log_probs = (EASE["score_scale"] * had @ self.weights).gather(1, candidates).log_softmax(1)
        ranks = (log_probs[:, None] > log_probs[:, :, None]).sum(2)
        return torch.stack([log_probs, log_probs.exp(), 1 / (1 + ranks)], 2)


@torch.no_grad()
def training_questions(model: LLMRecommender, loader: object, whole: WholeHistories) -> Asked:
    """The training rows with ``DRAWS`` draws of candidates each."""
    model.train()
    parts = []
    for draw in range(DRAWS):
        for interaction in loader:
            rows = model.training_rows(interaction, draw)
            told = model.conclude(rows.history, rows.candidates).log_probs
            of_whole = whole(interaction[PLACE_FIELD], rows.candidates)
            parts.append(Asked(rows.history, rows.candidates, rows.target_columns, told, of_whole))
    return Asked(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def evaluation_questions(model: LLMRecommender, loader: object, whole: WholeHistories) -> Asked:
    """The validation or test rows."""
    model.eval()
    parts = []
    for interaction, *_ in loader:
        questions = model._questions(interaction)
        targets = interaction[model.POS_ITEM_ID].cpu()
        columns = (questions.candidates == targets[:, None]).int().argmax(1)
        told = model.conclude(questions.history, questions.candidates).log_probs
        of_whole = whole(interaction[PLACE_FIELD], questions.candidates)
        parts.append(Asked(questions.history, questions.candidates, columns, told, of_whole))
    return Asked(*map(torch.cat, zip(*parts, strict=True)))


def fitted(reader: Reader, train: Asked, valid: Asked, test: Asked) -> torch.Tensor:
    """[B, C] scores of the test rows, by the epoch that was best on the validation rows."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=1e-3)
    best, scores = torch.inf, torch.empty(0)
    for _ in range(EPOCHS):
        reader.train()
        for rows in torch.randperm(len(train.targets)).split(256):
            part = Asked(*(values[rows] for values in train))
            optimizer.zero_grad()
            cross_entropy(reader(part), part.targets).backward()
            optimizer.step()
        reader.eval()
        with torch.no_grad():
            loss = float(cross_entropy(reader(valid), valid.targets))
            if loss < best:
                best, scores = loss, reader(test)
    return scores


def fitted_sum(valid: Asked, test: Asked) -> torch.Tensor:
    """[B, C] scores of the test rows: the recommender's log-probabilities and EASE's three numbers, weighted as ``fusion: validation`` weights."""

    def parts(asked: Asked) -> dict[str, torch.Tensor]:
        return {"recommender": asked.log_probs, **dict(zip(("log p", "p", "rank"), asked.whole.unbind(2), strict=True))}

    return fit(parts(valid), valid.targets).scores(list(parts(test).values()))


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log = logging.getLogger(__name__)
    log.setLevel(logging.INFO)
    keys = {**KEYS, **parse_arguments(sys.argv[1:])}
    config = RunConfig("LLaRA", keys.pop("dataset", "ml-100k"), config_dict={**keys, "use_gpu": False})
    data = prepare_data(config)
    model = build_model(config, data)
    known = data.dataset.knowledge.known["train"]
    counts = torch.from_numpy(np.bincount(known.keys % known.n_items, minlength=model.n_items)).float()
    states = title_states(causal_lm(model.llm).eval(), model.tokenizer, list(data.catalogue.titles))
    whole = WholeHistories(config, data, of_training=False)
    train, valid, test = (
        training_questions(model, data.train_data, WholeHistories(config, data, of_training=True)),
        evaluation_questions(model, data.valid_data, whole),
        evaluation_questions(model, data.test_data, whole),
    )
    of_target = counts[test.candidates[torch.arange(len(test.targets)), test.targets]]
    torch.manual_seed(config["seed"])
    others = torch.cat([states[:1], states[1:][torch.randperm(len(states) - 1)]])
    readers = {
        "temperature": (None, None, False),
        "popularity": (None, counts, False),
        "text": (states, None, False),
        "text of other items": (others, None, False),
        "text and popularity": (states, counts, False),
        "whole history": (None, None, True),
        "text and whole history": (states, None, True),
    }
    log.info(
        f"{config['dataset']}, {config['llm_path']}, seed {config['seed']}: n = {len(test.targets)}, {len(train.targets):,} training "
        f"questions; {config['rec_model']} alone: {_measured(test.log_probs, test)}"
    )
    found = {name: fitted(Reader(*parts), train, valid, test) for name, parts in readers.items()}
    found["whole history, fitted on the validation rows"] = fitted_sum(valid, test)
    first = None
    for name, scores in found.items():
        is_right = (scores.argmax(1) == test.targets).numpy()
        first = is_right if first is None else first
        against = mcnemar(is_right, first)
        bands = ", ".join(
            f"{is_right[inside].mean():.3f} (n = {inside.sum()})"
            for low, high in BANDS
            if (inside := ((of_target >= low) & (of_target <= high)).numpy()).any()
        )
        log.info(
            f"{name:44} {_measured(scores, test)}; against temperature +{against.only_a} -{against.only_b}, p = {against.p_value:.2g}; "
            f"by users of the target {bands}"
        )


def _measured(scores: torch.Tensor, asked: Asked) -> str:
    hit = (scores.argmax(1) == asked.targets).float().mean()
    return f"HitRatio@1 {hit:.4f}, NLL {cross_entropy(scores, asked.targets):.4f}"


if __name__ == "__main__":
    main()
