"""LLaRA (Liao et al., SIGIR 2024), and the same LLM without its projector: TALLRec and zero-shot.

Everything they need is the shared ``LLMRecommender``; what makes it LLaRA stands in ``properties/model/LLaRA.yaml``:
``representation: hybrid`` (eq. 4-6) and ``strategy: curriculum`` (eq. 9-11).
"""

from typing import Any

from recbole_llara.model.base import LLMRecommender, check_untrained, check_words_only
from recbole_llara.prompt.curriculum import shown_parts


class LLaRA(LLMRecommender):
    """LLaRA over the frozen recommender ``rec_model``."""


class TALLRec(LLMRecommender):
    """TALLRec (Bao et al., RecSys 2023), asked to choose one of the candidates as LLaRA's tables do.

    Its own question is whether a user likes one item, yes or no; the tables that we compare with ask all systems alike.
    """

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse prompts with slots, and what ``LLMRecommender`` refuses."""
        super().check(config)
        check_words_only(cls, config, shown_parts(config))


class ZeroShotLLM(LLMRecommender):
    """The LLM as it is, the tables' "Llama2": no training, straight to evaluation."""

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse prompts with slots, training, and what ``LLMRecommender`` refuses."""
        super().check(config)
        check_words_only(cls, config, shown_parts(config))
        check_untrained(cls, config)
