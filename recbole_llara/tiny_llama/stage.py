"""How hard the synthetic tasks of a step are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """How hard the tasks of a step are.

    Args:
        candidate_max: the most candidates a row has.
        short_share: probability that a batch's titles are cut to one token.
        lookup_share: probability of a lookup batch.
        reader_share: probability of a readers batch; the rest are selections.
        vector_share: probability that a lookup or readers batch asks by vectors.
        closeness: the least correlation of a query's vector with its item's.
        history_max: the most items of a history.
        hybrid_share: probability that a selection batch shows vectors; of the rest 4 in 7 have no slots, 3 placeholders.
        text_share: probability that only titles tell a hybrid selection's target; both tell it as often.
        size_spread: standard deviation of the logarithm of a selection's vectors' sizes.
        guidance_weight: of the losses inside the decoder.
        opener_share: probability that a made-up title begins with a word that many titles begin with.
        leading_tokens: how many of an answer's first tokens are guided and always count in the loss.
    """

    candidate_max: int
    short_share: float
    lookup_share: float
    reader_share: float
    vector_share: float
    closeness: float
    history_max: int
    hybrid_share: float = 0.65
    text_share: float = 0.25
    size_spread: float = 0.0
    guidance_weight: float = 0.0
    opener_share: float = 0.0
    leading_tokens: int = 1
