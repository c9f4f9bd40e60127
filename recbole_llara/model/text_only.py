"""LLMs that read text alone: tuned on the task (TALLRec), or asked as they are (zero-shot)."""

from typing import Any

from recbole_llara.config.settings import OptimSettings
from recbole_llara.model.base import LLMRecommender
from recbole_llara.prompt.curriculum import shown_parts
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.utils.errors import UserError


class TextOnlyLLM(LLMRecommender):
    """An LLM whose prompts hold words only."""

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse prompts with slots, and what ``LLMRecommender`` refuses."""
        super().check(config)
        worded = [name for name, representation in REPRESENTATIONS.items() if not representation.has_slot]
        shown = shown_parts(config)
        if not any(set(REPRESENTATIONS[name].parts) >= shown for name in worded):
            raise UserError(
                f"representation: found {config['representation']}, expected one of {', '.join(worded)}: {cls.__name__} reads "
                "words, no vectors; for those choose LLaRA or RSLLM"
            )


class TALLRec(TextOnlyLLM):
    """TALLRec (Bao et al., RecSys 2023), asked to choose one of the candidates as LLaRA's tables do.

    Its own question is whether a user likes one item, yes or no; the tables that we compare with ask all systems alike.
    """


class ZeroShotLLM(TextOnlyLLM):
    """The LLM as it is, the tables' "Llama2": no training, straight to evaluation."""

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse training, and what ``TextOnlyLLM`` refuses."""
        super().check(config)
        epochs = OptimSettings.from_config(config).epochs
        if epochs:
            raise UserError(f"epochs: found {epochs}, expected 0: ZeroShotLLM is not trained; TALLRec tunes the same prompts")
