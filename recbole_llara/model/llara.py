"""LLaRA (Liao et al., SIGIR 2024), and the same LLM without its projector: TALLRec and zero-shot.

Everything they need is the shared ``LLMRecommender``; what makes it LLaRA stands in ``properties/model/LLaRA.yaml``:
``representation: hybrid`` (eq. 4-6) and ``strategy: curriculum`` (eq. 9-11).
"""

from recbole_llara.model.base import LLMRecommender


class LLaRA(LLMRecommender):
    """LLaRA over the frozen recommender ``rec_model``."""


class TALLRec(LLMRecommender):
    """TALLRec (Bao et al., RecSys 2023), asked to choose one of the candidates as LLaRA's tables do.

    Its own question is whether a user likes one item, yes or no; the tables that we compare with ask all systems alike.
    """

    reads_words_only = True


class ZeroShotLLM(LLMRecommender):
    """The LLM as it is, the tables' "Llama2": no training, straight to evaluation."""

    reads_words_only, is_trained = True, False
