"""Letters that mark the candidates of a prompt, so that one token is the answer: LlamaRec's form (Yue et al., 2023). RecBole-free."""

from itertools import product
from string import ascii_uppercase

from transformers import PreTrainedTokenizerBase

from recbole_llara.prompt.tokens import tokenise_inside
from recbole_llara.utils.errors import UserError

_NAMES = (*ascii_uppercase, *map("".join, product(ascii_uppercase, repeat=2)))


def letter_tokens(
    tokenizer: PreTrainedTokenizerBase, count: int, has_space: bool = True
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of the marks " A:", " B:", ... of C candidates, and of the answers " A", " B", ...

    After Z come AA, AB, ...; those that the tokenizer does not read as one token are left out.

    Args:
        count: C.
        has_space: whether a space stands before an answer.

    Raises:
        UserError: there are fewer than C.
    """
    space = " " * has_space
    answers = dict(zip(_NAMES, tokenise_inside(tokenizer, [f"{space}{name}" for name in _NAMES]), strict=True))
    single = [name for name in _NAMES if len(answers[name]) == 1]
    if len(single) < count:
        raise UserError(
            f"candidate_num: found {count} with answer_form letter, but the LLM's tokenizer has {len(single)} letters of one token, expected at "
            "most so many candidates; or answer_form title"
        )
    marks = tokenise_inside(tokenizer, [f" {name}:" for name in single[:count]])
    return marks, [answers[name] for name in single[:count]]
