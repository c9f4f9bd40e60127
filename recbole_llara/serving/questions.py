"""Questions of many users, as JSON lines and the HTTP service bring them: those of one kind are one call of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llara.serving.loaded import LoadedRun, Recommendation, answer_alike
from recbole_llara.utils.errors import UserError


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
