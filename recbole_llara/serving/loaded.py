"""A finished run as something to ask: its recommender proposes unseen items, its LLM ranks them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from recbole_llara.checkpoint.run_folder import RESULT, is_network_share, model_of, read_request, read_result
from recbole_llara.config.models import is_llm_recommender, load_plugins, replaces_item_table
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import ALL, NO_FUSION, NO_PRIOR, UNIFORM, vectors_file
from recbole_llara.config.yaml_files import PlainText
from recbole_llara.data.dataset import PreparedData, prepare_data
from recbole_llara.data.numbering import read_numbering
from recbole_llara.evaluator.answer import CandidateAnswers
from recbole_llara.evaluator.fusion import Fusion
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.model.answering import Questions, evaluation_prompts, generate, score
from recbole_llara.model.build import build_model
from recbole_llara.model.weights import load_llm_recommender
from recbole_llara.prompt.encoding import EncodedPrompts
from recbole_llara.recommender.frozen import Recommender, recommender_model, weights_file
from recbole_llara.recommender.retriever import Retriever, padded
from recbole_llara.recommender.stock import load_recommender
from recbole_llara.serving.catalogue import ItemNames
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import file_sha256
from recbole_llara.utils.process_setup import own_environment
from recbole_llara.utils.random_state import kept_random_state

Name = str | int
# What a loaded run has whatever the folder says: answers are ranked by their likelihood, no question waits for a compiler, and nothing
# is drawn or read for training: the recommender is the one that answered.
_SETTLED = {"resume": None, "result_file": None, "log_wandb": False, "show_progress": False}
_SETTLED_LLM = {"decoding": "score", "torch_compile": False}
_SETTLED_LLM |= {"candidate_draw": UNIFORM, "recommender_rows": ALL, "listwise_prior": NO_PRIOR}
_MENDS = "bring that one back, or name it by rec_checkpoint"


@dataclass(frozen=True)
class Recommendation:
    """One item of an answer."""

    item_id: str  # the dataset's
    title: str  # as the dataset has it
    # What ranks it: the log-likelihood of its title in nats under an LLM, its log-probability among the candidates under the sum
    # of an LLM and its recommender, a stock recommender's own score.
    score: float
    rank: int  # from 1
    recommender_rank: int | None  # from 1, among all unseen items by the run's recommender; None where candidates were given


class LoadedRun:
    """A run that answers questions about users it has never seen: ``model`` ranks what ``retriever`` proposes.

    Args:
        config: the run's.
        data: what it is asked about.
        model: trained; a stock recommender is its own retriever.

    Attributes:
        recommender: what proposes items to an LLM; None where a stock recommender answers.
        fusion: the weights by which its scores are added to the LLM's; None = the LLM's alone rank.
    """

    def __init__(self, config: Any, data: PreparedData, model: nn.Module) -> None:
        self.config, self.data, self.model = config, data, model.eval()
        self.is_llm = is_llm_recommender(config["model"])
        self.recommender: Recommender | None = None
        self.fusion: Fusion | None = None
        proposing = (model, config)
        if self.is_llm:
            self.recommender, *proposing = recommender_model(config, data)
        # A recommender has learned nothing of held-out items, unless it reads their titles.
        never = None if replaces_item_table(proposing[1]["model"]) else data.dataset.is_held_out
        self.retriever = Retriever(*proposing, data.sampler.n_items, never)
        ids = data.dataset.field2id_token[data.dataset.iid_field]
        self.names = ItemNames(ids, [str(name) for name in ids] if data.catalogue is None else data.catalogue.titles)
        self.batch_size = config["eval_batch_size"]

    @property
    def name(self) -> str:
        """The system that answers: its model, or ``LLaRA + SASRec``."""
        return self.config["model"] if self.fusion is None else self.fusion.name

    def recommend(
        self, history: Sequence[Name], k: int = 5, candidates: Sequence[Name] | None = None, retrieve_k: int | None = None
    ) -> list[Recommendation]:
        """The best items for one user, at most k, best first.

        Args:
            history: titles or ids in order of time, at least one; prompts show the last MAX_ITEM_LIST_LENGTH of them.
            k: (int, items) at most so many.
            candidates: titles or ids to choose from; None = what the recommender proposes.
            retrieve_k: (int, items) proposed; None = candidate_num.

        Raises:
            UserError: an item that does not exist, an empty history, or numbers out of range.
        """
        return self.recommend_batch([history], k, None if candidates is None else [candidates], retrieve_k)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[Name]],
        k: int = 5,
        candidates: Sequence[Sequence[Name]] | None = None,
        retrieve_k: int | None = None,
    ) -> list[list[Recommendation]]:
        """``recommend`` for B users at once; their lists of candidates are of one length."""
        retrieve_k = self.config["candidate_num"] if retrieve_k is None else retrieve_k
        for name, value in (("k", k), ("retrieve_k", retrieve_k)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name}: found {value!r}, expected a whole number of at least 1")
        if retrieve_k >= self.retriever.n_known:
            raise UserError(f"retrieve_k: found {retrieve_k}, but there are {self.retriever.n_known - 1} items; expected fewer")
        rows = [self.items("history", history) for history in histories]
        if not rows:
            return []
        if candidates is None:
            takes_again = self.data.dataset.protocol.repeated_targets == "match"
            proposed = self.retriever.propose(rows, retrieve_k, seen=[[]] * len(rows) if takes_again else None)  # [B, C]
            orders = [{item: rank for rank, item in enumerate(row, 1)} for row in proposed.tolist()]
            asked = in_own_order(proposed)
        else:
            chosen = [self.items("candidates", items) for items in candidates]
            if len(chosen) != len(rows) or len({len(items) for items in chosen}) > 1:
                raise UserError(
                    "candidates: found lists of different lengths, expected one of the same length for each history"
                )
            asked, orders = torch.tensor(chosen), [{}] * len(rows)
        scores, questions = self._scores_by_length(rows, asked), question_keys(self._history(rows))
        return [self._told(*row, k) for row in zip(questions, asked, scores, orders, strict=True)]

    @torch.no_grad()
    def scores(
        self, histories: Sequence[Sequence[int]], candidates: torch.Tensor, users: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Scores [B, C] of candidates [B, C], internal ids throughout; 0 among them is nothing and scores minus infinity.

        Users are as for ``Retriever.propose``.
        """
        if self.is_llm:
            # A user who has seen nearly everything has fewer candidates: the first fills the gaps, where it is not counted.
            shown = torch.where(candidates > 0, candidates, candidates[:, :1])
            with self.model.evaluation_arithmetic():
                scores = score(self.model, self._questions(histories, shown)).scores.cpu()
            if self.fusion is not None:
                of_recommender = self.retriever.candidate_scores(histories, shown, users)
                scores = self.fusion.scores([of_recommender, scores], candidates > 0)
        else:
            scores = self.retriever.candidate_scores(histories, candidates, users)
        return scores.masked_fill(candidates == 0, -torch.inf)

    def _scores_by_length(self, histories: Sequence[Sequence[int]], candidates: torch.Tensor) -> torch.Tensor:
        """``scores`` of any number of histories, those with prompts of like length in one batch."""
        order = torch.arange(len(histories))
        if self.is_llm:
            order = self.model.encoder.prompt_lengths(self._history(histories), candidates).argsort(stable=True)
        parts = order.split(self.batch_size)
        scores = torch.cat([self.scores([histories[row] for row in part.tolist()], candidates[part]) for part in parts])
        return torch.empty_like(scores).index_copy_(0, order, scores)

    def prompts(self, histories: Sequence[Sequence[int]], candidates: torch.Tensor) -> EncodedPrompts:
        """What the LLM reads of histories and candidates [B, C], internal ids throughout; for runs that have an LLM."""
        return evaluation_prompts(self.model, self._questions(histories, candidates))

    @torch.no_grad()
    def write(self, histories: Sequence[Sequence[int]], candidates: torch.Tensor) -> CandidateAnswers:
        """What the LLM writes when nothing holds it to the candidates [B, C]; for runs that have an LLM."""
        with self.model.evaluation_arithmetic():
            return generate(self.model, self._questions(histories, candidates)).cpu()

    def _questions(self, histories: Sequence[Sequence[int]], candidates: torch.Tensor) -> Questions:
        rows = torch.zeros(len(histories), dtype=torch.int64)  # questions that are rows of no split
        return Questions(self._history(histories), candidates, rows)

    def _history(self, histories: Sequence[Sequence[int]]) -> torch.Tensor:
        return padded(histories, self.config["MAX_ITEM_LIST_LENGTH"])

    def _told(
        self, question: torch.Tensor, asked: torch.Tensor, scores: torch.Tensor, order: Mapping[int, int], k: int
    ) -> list[Recommendation]:
        """One user's answer: the question's key, candidates [C], their scores [C], and their ranks by the recommender."""
        asked, scores = asked[asked > 0], scores[asked > 0]
        ranking = rank_candidates(scores[None], asked[None], question[None])[0, :k].tolist()
        by_item = dict(zip(asked.tolist(), scores.tolist(), strict=True))
        return [
            Recommendation(self.names.ids[item], self.names.titles[item], by_item[item], rank, order.get(item))
            for rank, item in enumerate(ranking, 1)
        ]

    def items(self, what: str, named: Sequence[Name]) -> list[int]:
        """Internal ids of a question's ``history`` or ``candidates``."""
        if isinstance(named, str) or not named:
            raise UserError(f"{what}: found {named!r}, expected a list of at least one title or id")
        items = [self.names.find(name) for name in named]
        if what == "candidates" and len(set(items)) < len(items):
            raise UserError(f"candidates: found {len(items) - len(set(items))} items twice, expected each once")
        return items


Question, Answer = TypeVar("Question"), TypeVar("Answer")


def answer_alike(
    questions: Sequence[Question | UserError],
    kind: Callable[[Question], Hashable],
    answer: Callable[[list[Question]], Sequence[Answer]],
) -> list[Answer | UserError]:
    """Answers in the order of the questions: those of one kind together; a mistake is its question's answer and no other's.

    Args:
        questions: one that is a mistake already is its own answer.
        kind: questions of one kind are asked in one call.
        answer: of questions of one kind; where one of them is wrong, it is called with each by itself.
    """
    answers: dict[int, Answer | UserError] = dict(enumerate(questions))
    groups: dict[Hashable, list[int]] = {}
    for number, question in enumerate(questions):
        if not isinstance(question, UserError):
            groups.setdefault(kind(question), []).append(number)
    for numbers in groups.values():
        asked = [questions[number] for number in numbers]
        try:
            found = answer(asked)
        except UserError as error:
            found = [error] if len(asked) == 1 else [answer_alike([one], kind, answer)[0] for one in asked]
        answers.update(zip(numbers, found, strict=True))
    return list(answers.values())


@own_environment()
@kept_random_state()
def load(run: str | Path, **keys: Any) -> LoadedRun:
    """Load a finished run. Nothing of the process is changed: no environment variable, warning filter, seed or switch of torch.

    Args:
        run: its folder, as ``saved/LLaRA-ml-100k-llara-seed2020-...``. It may come from a stranger: none of its code is run, and
            what it asks for beside the values of the computation (see ``config.validation.FromRun``) is refused.
        keys: over the run's own, such as ``data_path`` or ``use_gpu``; those that change what was learned are refused by
            the checkpoint. ``plugins`` names the files that registered its model; ``llm_trust_remote_code=True`` with
            ``llm_path`` runs the code that comes with that LLM.

    Raises:
        UserError: the folder is no finished run's, asks for what the caller must give, its data is not there, or it cannot
            rank (a chat model, decoding aside).
    """
    path = Path(run).expanduser()
    if model_of(path) == "ChatLLM":
        raise UserError("run: ChatLLM answers with one candidate and ranks none; expected a run of another model")
    load_plugins(keys.get("plugins"))
    settled = {**_SETTLED, "checkpoint_dir": PlainText(path.parent)}
    request = read_request(path, {**settled, **keys})
    if not (path / RESULT).is_file():
        raise UserError(f"run: {path} is not finished, expected a folder with {RESULT}; --resume={path} goes on with it")
    is_llm = is_llm_recommender(request.model)
    if is_llm:
        settled |= _SETTLED_LLM | _own_recommender(path, {**request.keys, **keys})
    config = RunConfig(request.model, request.dataset, config_dict={"state": "WARNING", **request.keys, **settled, **keys})
    checkpoint = Path(config["checkpoint"] or path / ("checkpoint" if is_llm else "checkpoint.safetensors"))
    data = prepare_data(config, read_numbering(checkpoint, "run"))
    model = build_model(config, data)
    if is_llm:
        load_llm_recommender(model, checkpoint)
    else:
        load_recommender(model, checkpoint, request.model)
    loaded = LoadedRun(config, data, model)
    if is_llm and config["fusion"] != NO_FUSION:
        loaded.fusion = _fusion_of(path, loaded)
    return loaded


def _fusion_of(run: Path, loaded: LoadedRun) -> Fusion:
    """The weights that a run fitted, if they are those of the models that were loaded."""
    result = read_result(run)
    if not result.get("fusion"):
        raise UserError(
            f"fusion: {run} was not fused, so that there are no weights; evaluate its checkpoint with "
            f"--checkpoint={run / 'checkpoint'} --fusion={loaded.config['fusion']}, or leave fusion out"
        )
    fusion, own = Fusion.read(result["fusion"]), (loaded.recommender.model, loaded.config["model"])
    if fusion.systems != own:
        raise UserError(
            f"fusion: {run / RESULT} tells weights of {', '.join(fusion.systems)}, expected those of {', '.join(own)}"
        )
    read = result.get("recommender")
    if not isinstance(read, dict) or read.get("sha256") != loaded.recommender.sha256:
        raise UserError(
            f"fusion: the weights of {run} were fitted with another recommender than {loaded.recommender.path}; {_MENDS}, or leave "
            "the LLM alone by fusion none"
        )
    return fusion


def _own_recommender(run: Path, keys: Mapping[str, Any]) -> dict[str, str]:
    """The key that names the recommender whose embeddings a run read; to train another would be minutes for nothing."""
    if keys.get("rec_checkpoint") or vectors_file(keys.get("item_embeddings")) is not None:
        return {}
    read = read_result(run).get("recommender")
    if not isinstance(read, dict) or not isinstance(read.get("path"), str):
        getLogger().warning("run: it read no recommender; items are proposed by rec_model, from the cache or trained now")
        return {}
    path = Path(read["path"])
    beside = run.parent / "recommenders" / path.name  # where the folder of all runs has moved
    place = next((place for place in (beside, path) if not is_network_share(place) and place.exists()), None)
    if place is None:
        raise UserError(f"run: the recommender that {run} read is neither at {beside} nor at {path}; {_MENDS}")
    weights = weights_file(place)
    if not weights.is_file() or file_sha256(weights) != read.get("sha256"):
        raise UserError(
            f"run: {weights} is not the recommender that {run} read (its SHA-256 is not the one in {RESULT}); {_MENDS}"
        )
    return {"rec_checkpoint": PlainText(place)}


def as_json(recommendations: Sequence[Recommendation]) -> list[dict[str, Any]]:
    """What JSON can hold of an answer."""
    return [asdict(recommendation) for recommendation in recommendations]


def in_own_order(items: torch.Tensor) -> torch.Tensor:
    """[B, C] the same items by their number: a prompt must not tell the recommender's order, which training never showed."""
    return torch.where(items > 0, items, torch.iinfo(torch.int64).max).sort(1).values.remainder(torch.iinfo(torch.int64).max)
