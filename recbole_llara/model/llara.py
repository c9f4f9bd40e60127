"""LLaRA (Liao et al., SIGIR 2024): hybrid prompts, a projector into a LoRA-tuned LLM, a curriculum of tasks.

Everything it needs is the shared ``LLMRecommender``; what makes it LLaRA stands in ``properties/model/LLaRA.yaml``:
``representation: hybrid`` (eq. 4-6) and ``strategy: curriculum`` (eq. 9-11).
"""

from recbole_llara.model.base import LLMRecommender


class LLaRA(LLMRecommender):
    """LLaRA over the frozen recommender ``rec_model``."""
