"""A run's LLM and its recommender as one system: weights are fitted to what both answer to the validation rows.

Only validation rows are looked at for the weights. Lists of other lengths than ``candidate_num``, as ``recommend`` and the
re-ranking of the catalogue have, take the same weights over log-softmaxes of the list shown.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from recbole_llara.evaluator.answer import EvaluatedCases
from recbole_llara.evaluator.evaluation import measure
from recbole_llara.evaluator.fusion import Fusion, fit, fuse_cases
from recbole_llara.evaluator.ranking import question_keys, rank_candidates
from recbole_llara.serving.loaded import LoadedRun


@dataclass(frozen=True)
class FusedAnswers:
    """What the sum answered."""

    fusion: Fusion
    cases: Mapping[str, EvaluatedCases]  # of ``valid`` and ``test``
    metrics: Mapping[str, "OrderedDict[str, float]"]  # split -> RecBole's of the sum
    alone: Mapping[str, Mapping[str, "OrderedDict[str, float]"]]  # system -> split -> RecBole's

    def result_fields(self) -> dict[str, Any]:
        """What ``result.json`` tells under ``fusion``."""
        return {**self.fusion.result_fields(), "alone": self.alone}


def fuse_run(run: LoadedRun, trainer: Any, answered: Mapping[str, EvaluatedCases]) -> FusedAnswers:
    """Fit the weights of a run's recommender and LLM to the validation rows, and answer both splits by the sum.

    Args:
        run: the LLM and the recommender.
        trainer: whose collector and metrics measure.
        answered: the LLM's answers to the rows of ``valid`` and ``test``.

    Raises:
        UserError: what ``fit`` refuses.
    """
    names = (run.recommender.model, run.config["model"])
    of_systems = {split: (recommender_cases(run, cases), cases) for split, cases in answered.items()}
    fitted = of_systems["valid"]
    fusion = fit({name: cases.scores for name, cases in zip(names, fitted, strict=True)}, fitted[0].places)
    fused = {split: fuse_cases(fusion, cases) for split, cases in of_systems.items()}

    def measured(cases: EvaluatedCases) -> "OrderedDict[str, float]":
        return measure(trainer.eval_collector, trainer.evaluator, run.model.n_items, cases)

    alone = {name: {split: measured(cases[number]) for split, cases in of_systems.items()} for number, name in enumerate(names)}
    return FusedAnswers(fusion, fused, {split: measured(cases) for split, cases in fused.items()}, alone)


def recommender_cases(run: LoadedRun, cases: EvaluatedCases) -> EvaluatedCases:
    """The answers of a run's recommender to the rows that its LLM answered."""
    histories = [[item for item in row if item] for row in cases.histories.tolist()]
    scores = run.retriever.candidate_scores(histories, cases.candidates, cases.users.tolist())
    items = rank_candidates(scores, cases.candidates, question_keys(cases.histories))[:, 0]
    return replace(cases, items=items, scores=scores, texts=None, outcomes=None)
