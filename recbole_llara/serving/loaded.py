"""A finished run as something to ask: its recommender proposes unseen items, its LLM ranks them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from recbole_llara.checkpoint.run_folder import PROMPTS, RECOMMENDER, RESULT, model_of, read_request, read_result
from recbole_llara.checkpoint.weights import read_checkpoint, weights_sha256
from recbole_llara.config.models import is_llm_recommender, load_plugins, replaces_item_table
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import INDEX, LOCAL, NO_FUSION, VECTORS, ids_file, vectors_file
from recbole_llara.config.yaml_files import PlainText
from recbole_llara.data.dataset import PreparedData
from recbole_llara.data.snapshot import read_snapshot
from recbole_llara.evaluator.answer import CandidateAnswers
from recbole_llara.evaluator.fusion import Fusion
from recbole_llara.evaluator.ranking import question_keys, rank_candidates, shown_order
from recbole_llara.model.answering import Questions, evaluation_prompts, generate, score
from recbole_llara.model.base import LLMRecommender
from recbole_llara.model.build import build_model, prepare_answers
from recbole_llara.model.engine import EngineRecommender
from recbole_llara.model.engine_client import FOLDER
from recbole_llara.model.weights import load_llm_recommender
from recbole_llara.prompt.encoded import EncodedPrompts
from recbole_llara.recommender.frozen import Recommender, recommender_model, vectors_sha256
from recbole_llara.recommender.retriever import MostPopular, Retriever, padded
from recbole_llara.recommender.stock import load_recommender
from recbole_llara.serving.catalogue import ItemNames
from recbole_llara.serving.changing import ChangedItems, ChangingItems
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import give_back_freed_memory, own_environment
from recbole_llara.utils.random_state import kept_random_state

Name = str | int
# What a loaded run has whatever the folder says: answers are ranked by their likelihood, no question waits for a compiler, and no
# file of the data is looked for.
_SETTLED = {"resume": None, "result_file": None, "log_wandb": False, "show_progress": False}
_SETTLED_LLM = {"decoding": "score", "torch_compile": False}
_TEXTS = frozenset({"title_field", "title_rules", "item_fields", "shuffle_titles"})  # keys that made the texts of the items
POPULARITY = "Popularity"  # what proposes where no recommender is kept with an LLM's run
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
        recommender: what proposes items to an LLM; None where a stock recommender answers, and where none is kept with the run: then
            the most popular items are proposed.
        fusion: the weights by which its scores are added to the LLM's; None = the LLM's alone rank.
    """

    def __init__(self, config: Any, data: PreparedData, model: nn.Module) -> None:
        self.config, self.data, self.model = config, data, model.eval()
        self.is_llm = is_llm_recommender(config["model"])
        self.recommender: Recommender | None = None
        self.fusion: Fusion | None = None
        proposing = (model, config)
        if self.is_llm and data.train_data is None and not _names_recommender(config):
            proposing = (MostPopular(data.dataset.training_counts).to(config["device"]), config)
        elif self.is_llm:
            self.recommender, *proposing = getattr(model, "answering", None) or recommender_model(config, data)
        # A recommender has learned nothing of held-out items, unless it reads their titles.
        never = None if replaces_item_table(proposing[1]["model"]) else data.dataset.is_held_out
        self.retriever = Retriever(*proposing, data.dataset.n_known, never, config["retrieval"] == INDEX)
        self.names = _names_of(data)
        self.batch_size = config["eval_batch_size"]
        self.changing = ChangingItems(self)

    @property
    def name(self) -> str:
        """The system that answers: its model, or ``LLaRA + SASRec``."""
        return self.config["model"] if self.fusion is None else self.fusion.name

    @property
    def proposing(self) -> str:
        """What proposes items: the name of a recommender."""
        if self.is_llm:
            return POPULARITY if self.recommender is None else self.recommender.model
        return self.config["model"]

    def recommend(
        self, history: Sequence[Name], k: int = 5, candidates: Sequence[Name] | None = None, retrieve_k: int | None = None
    ) -> list[Recommendation]:
        """The best items for one user, at most k, best first.

        Args:
            history: titles or ids in order of time, at least one; prompts show the last MAX_ITEM_LIST_LENGTH of them.
            k: (int, items) at most so many.
            candidates: titles or ids to choose from, which a prompt lists as they come; None = what the recommender proposes, listed
                in an order drawn by the history.
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
        check_count("k", k)
        rows = [self.items("history", history) for history in histories]
        if not rows:
            return []
        asked, orders = self.asked(rows, candidates, retrieve_k)
        scores, questions = self._scores_by_length(rows, asked), question_keys(self._history(rows))
        return [self._told(*row, k) for row in zip(questions, asked, scores, orders, strict=True)]

    def asked(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[Name]] | None, retrieve_k: int | None
    ) -> tuple[torch.Tensor, list[dict[int, int]]]:
        """The candidates [B, C] of histories, 0 where there are fewer, and each row's ranks of those that were proposed, by item.

        Histories and what is returned are internal ids; arguments and errors as for ``recommend_batch``.
        """
        retrieve_k = self.config["candidate_num"] if retrieve_k is None else retrieve_k
        check_count("retrieve_k", retrieve_k)
        if retrieve_k >= self.retriever.n_known:
            raise UserError(f"retrieve_k: found {retrieve_k}, but there are {self.retriever.n_known - 1} items; expected fewer")
        if candidates is not None:
            chosen = [self.items("candidates", items) for items in candidates]
            if len(chosen) != len(histories) or len({len(items) for items in chosen}) > 1:
                raise UserError(
                    "candidates: found lists of different lengths, expected one of the same length for each history"
                )
            return torch.tensor(chosen), [{}] * len(histories)
        proposed = self.retriever.propose(
            histories, retrieve_k, seen=[[]] * len(histories) if self.takes_again else None
        )  # [B, C]
        orders = [{item: rank for rank, item in enumerate(row, 1)} for row in proposed.tolist()]
        return self.listed(histories, proposed), orders

    @property
    def takes_again(self) -> bool:
        """Whether users take items again, so that those of a history are proposed too."""
        return self.data.dataset.protocol.repeated_targets == "match"

    def listed(self, histories: Sequence[Sequence[int]], items: torch.Tensor) -> torch.Tensor:
        """[B, C] proposed items, internal ids, in the order in which prompts list them; see ``shown_order``."""
        return shown_order(items, question_keys(self._history(histories)))

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

    def add_items(self, items: Sequence[Mapping[str, Any]]) -> ChangedItems:
        """Add items that training never saw, rename some, or take some out of what is recommended; all of it or, on an error, nothing.

        What the LLM reads of a new item is its title, with the fields that prompts show; its behavioural token is made from these
        as the run's ``new_item_token`` says, and in a run of ``own``, which has no row for it, as ``text`` does. See the page "New items".

        Args:
            items: each with ``item_id``, and ``title``, ``removed`` (bool) and names of ``item_fields`` where something is to be told. An
                item whose id is known keeps what is not told.

        Raises:
            UserError: an item is of another form, or the run has no LLM.
        """
        return self.changing.change([self.changing.told(item) for item in items])

    def items(self, what: str, named: Sequence[Name]) -> list[int]:
        """Internal ids of a question's ``history`` or ``candidates``."""
        if isinstance(named, str) or not named:
            raise UserError(f"{what}: found {named!r}, expected a list of at least one title or id")
        items = [self.names.find(name) for name in named]
        if removed := [
            name for name, item in zip(named, items, strict=True) if what == "candidates" and item in self.changing.removed
        ]:
            raise UserError(f"candidates: found {removed[0]!r}, which was removed; expected items that are recommended")
        if what == "candidates" and len(set(items)) < len(items):
            raise UserError(f"candidates: found {len(items) - len(set(items))} items twice, expected each once")
        return items


def check_count(name: str, value: int) -> None:
    """Refuse what is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}: found {value!r}, expected a whole number of at least 1")


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


def recommend_each(
    run: LoadedRun, questions: Sequence[Mapping[str, Any] | UserError]
) -> list[list[Recommendation] | UserError]:
    """Answers in the order of the questions; a mistake in one is its own answer and no other's.

    Args:
        questions: each with ``history``, ``k``, ``candidates`` and ``retrieve_k``, the last two None where nothing is said
            (see ``LoadedRun.recommend``); one that is a mistake already is its own answer.
    """

    def kind(question: Mapping[str, Any]) -> tuple[str, str, int | None]:
        candidates = question["candidates"]
        return str(question["k"]), str(question["retrieve_k"]), None if candidates is None else len(candidates)

    def recommend(alike: Sequence[Mapping[str, Any]]) -> list[list[Recommendation]]:
        first = alike[0]
        candidates = None if first["candidates"] is None else [question["candidates"] for question in alike]
        return run.recommend_batch([question["history"] for question in alike], first["k"], candidates, first["retrieve_k"])

    return answer_alike(questions, kind, recommend)


def load(run: str | Path, **keys: Any) -> LoadedRun:
    """Load a finished run to be asked: ``read_run``, whose arguments and errors it has, with what makes an LLM's answers cheaper.

    These are ``prefix_cache``, and under an ``eval_dtype`` of halves on a CPU weights that are held in them.
    """
    loaded = read_run(run, **keys)
    if isinstance(loaded.model, LLMRecommender):
        prepare_answers(loaded.config, loaded.model)
    return loaded


@own_environment()
@kept_random_state()
def read_run(run: str | Path, **keys: Any) -> LoadedRun:
    """Load a finished run, its weights as they were trained. Nothing of the process is changed: no environment variable, warning filter, seed or switch of torch.

    Its folder holds what answers need, but for the LLM, which ``llm_path`` names: no file of the dataset is read, no candidate drawn,
    no lock taken, nothing written.

    Args:
        run: its folder, as ``saved/LLaRA-ml-100k-llara-seed2020-...``. It may come from a stranger: none of its code is run, and
            what it asks for beside the values of the computation (see ``config.validation.FromRun``) is refused.
        keys: over the run's own, such as ``llm_path`` or ``use_gpu``; those that change what was learned are refused by
            the checkpoint. ``plugins`` names the files that registered its model; ``llm_trust_remote_code=True`` with
            ``llm_path`` runs the code that comes with that LLM.

    Raises:
        UserError: the folder is no finished run's, asks for what the caller must give, a file of it is missing, or it cannot
            rank (a chat model, decoding aside).
    """
    path = Path(run).expanduser()
    if model_of(path) == "ChatLLM":
        raise UserError("run: ChatLLM answers with one candidate and ranks none; expected a run of another model")
    load_plugins(keys.get("plugins"))
    settled = {**_SETTLED, "checkpoint_dir": PlainText(path.parent)}
    request = read_request(path, {**settled, **keys})
    if not (path / RESULT).is_file():
        raise UserError(f"run: {path} is not finished, expected a folder with {RESULT}; --resume={path} resumes it")
    if given := sorted(_TEXTS & keys.keys()):
        raise UserError(
            f"{given[0]}: found {keys[given[0]]!r}, expected none: the texts of the items are those kept with {path}"
        )
    is_llm = is_llm_recommender(request.model)
    checkpoint = keys.get("checkpoint") or request.keys.get("checkpoint")
    checkpoint = Path(checkpoint or path / ("checkpoint" if is_llm else "checkpoint.safetensors"))
    if is_llm:
        settled |= _SETTLED_LLM | own_files(path, keys)
    keys = {"state": "WARNING", **request.keys, **settled, **keys}
    config = RunConfig(request.model, request.dataset, config_dict=keys, reads_data=False)
    data = PreparedData(read_snapshot(checkpoint, "run").dataset(config), kept=checkpoint)
    if is_llm and config["backend"] != LOCAL:
        model = EngineRecommender(config, data, checkpoint, path / FOLDER)
    elif is_llm:
        kept = read_checkpoint(checkpoint)
        kept.read_tensors()  # all files are compared with their digests before anything is made of them
        model = build_model(config, data)
        load_llm_recommender(model, kept)
    else:
        model = build_model(config, data)
        load_recommender(model, checkpoint, request.model, is_frozen=True)
    loaded = LoadedRun(config, data, model)
    if is_llm and config["fusion"] != NO_FUSION:
        loaded.fusion = _fusion_of(path, loaded)
    give_back_freed_memory()
    return loaded


def _fusion_of(run: Path, loaded: LoadedRun) -> Fusion:
    """The weights that a run fitted, if they are those of the models that were loaded."""
    result = read_result(run)
    if not result.get("fusion"):
        raise UserError(
            f"fusion: {run} was not fused, so that there are no weights; evaluate its checkpoint with "
            f"--checkpoint={run / 'checkpoint'} --fusion={loaded.config['fusion']}, or leave fusion out"
        )
    fusion, recommender = Fusion.read(result["fusion"]), loaded.recommender
    own = (None if recommender is None else recommender.model, loaded.config["model"])
    if fusion.systems != own:
        raise UserError(
            f"fusion: {run / RESULT} tells weights of {', '.join(fusion.systems)}, expected those of {', '.join(map(str, own))}"
        )
    read = result.get("recommender")
    if not isinstance(read, dict) or read.get("sha256") != loaded.recommender.sha256:
        raise UserError(
            f"fusion: the weights of {run} were fitted with another recommender than {loaded.recommender.path}; {_MENDS}, or leave "
            "the LLM alone by fusion none"
        )
    return fusion


def _names_of(data: PreparedData) -> ItemNames:
    ids, snapshot = data.dataset.field2id_token[data.dataset.iid_field], getattr(data.dataset, "snapshot", None)
    titles = ids if data.catalogue is None else data.catalogue.titles
    return (
        ItemNames(ids, titles) if snapshot is None else ItemNames(ids, titles, snapshot.numbering.index, snapshot.title_index)
    )


def _names_recommender(config: Any) -> bool:
    return bool(config["rec_checkpoint"]) or vectors_file(config["item_embeddings"]) is not None


def own_files(run: Path, keys: Mapping[str, Any]) -> dict[str, str | None]:
    """The keys that name what a run's folder holds beside its checkpoint: the recommender that it read, and its prompts.

    Args:
        keys: the caller's, which are over these.
    """
    own: dict[str, str | None] = {"prompt_file": PlainText(run / PROMPTS)} if (run / PROMPTS).is_file() else {}
    if keys.get("rec_checkpoint") or vectors_file(keys.get("item_embeddings")) is not None:
        return own
    own["rec_checkpoint"], read = None, read_result(run).get("recommender")
    if not isinstance(read, dict):
        getLogger().info(
            "run: it read no recommender; the most popular items are proposed, or those of one named by rec_checkpoint"
        )
        return own
    place = next((path for path in sorted((run / RECOMMENDER).glob("*")) if path.suffix in (*VECTORS, ".pth")), None)
    if place is None:
        raise UserError(f"run: {run} lacks the folder {RECOMMENDER} with the recommender that it read; {_MENDS}")
    is_table = ids_file(place).is_file()
    if (vectors_sha256(place) if is_table else weights_sha256(place)) != read.get("sha256"):
        raise UserError(
            f"run: {place} is not the recommender that {run} read (its SHA-256 is not the one in {RESULT}); {_MENDS}"
        )
    return {**own, "item_embeddings" if is_table else "rec_checkpoint": PlainText(place)}


def as_json(recommendations: Sequence[Recommendation]) -> list[dict[str, Any]]:
    """What JSON can hold of an answer."""
    return [asdict(recommendation) for recommendation in recommendations]
