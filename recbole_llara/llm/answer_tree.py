"""The candidates' answers as one packed token tree per row, so that one pass of the LLM scores them all."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from recbole_llara.llm.architecture import EmbeddedPrompts, causal_lm
from recbole_llara.llm.cpu import BMM_ATTENTION
from recbole_llara.prompt.encoded import IGNORED_LABEL
from recbole_llara.utils.transfer import send


@dataclass(frozen=True)
class AnswerTrie:
    """Answers of B rows of C candidates, of up to A tokens, whose shared beginnings are stored once.

    A *node* is a token that another one follows in some answer; a row has up to Q of them. What comes last in
    every answer (the EOS) is predicted, never read, and so is no node.

    """

    node_ids: torch.Tensor  # [B, Q] token ids of the nodes, 0 beyond the row's last
    node_depth: torch.Tensor  # [B, Q] 0 for first tokens of answers
    visible: torch.Tensor  # [B, Q, Q] bool, whether a node (second axis) reads another (third): itself and its ancestors
    path: torch.Tensor  # [B, C, A] the node of each token of each answer; meaningless for last tokens and padding

    def to(self, device: torch.device) -> "AnswerTrie":
        """The same tree on another device."""
        return AnswerTrie(*(send(tensor, device) for tensor in vars(self).values()))


def build_trie(answer_ids: torch.Tensor) -> AnswerTrie:
    """Pack the answers of each row's candidates into a tree.

    Example, one row, C = 3, A = 4, ``$`` = EOS, ``.`` = padding::

        answer_ids   the matrix $ .      nodes   0 the  1 matrix  2 apes  3 alien
                     the apes   $ .      depth   0      1         1       0
                     alien $    . .      visible node 1 reads 0 and 1, node 2 reads 0 and 2

    Args:
        answer_ids: [B, C, A] token ids, each answer with its EOS, padded on the right with -100.

    Raises:
        ValueError: an empty answer, padding inside one, or an answer that another one continues.
    """
    n_answer = answer_ids.shape[2]
    depth = torch.arange(n_answer, device=answer_ids.device)  # [A]
    present = answer_ids != IGNORED_LABEL  # [B, C, A]
    lengths = present.sum(2)  # [B, C]
    if not bool((present == (depth < lengths[:, :, None])).all()) or not bool((lengths > 0).all()):
        raise ValueError(f"an answer without tokens or with padding inside: expected tokens, then {IGNORED_LABEL}")
    # same[b, c, d, j]: answers c and d agree up to and with token j.
    same = (answer_ids[:, :, None] == answer_ids[:, None]).cumprod(3, dtype=torch.uint8)  # [B, C, C, A]
    last = (lengths - 1)[:, :, None, None].expand(-1, -1, lengths.shape[1], 1)  # [B, C, C, 1]
    begins_with = same.gather(3, last).squeeze(3).bool()  # [B, C, C] answer d begins with all of answer c
    if bool((begins_with & (lengths[:, None] > lengths[:, :, None])).any()):
        # Without an EOS at its end the shorter one could not be chosen.
        raise ValueError("an answer is the beginning of another: expected every answer to end with EOS")
    is_read = depth < lengths[:, :, None] - 1  # [B, C, A]
    # The node of a token belongs to the first candidate with the same beginning that goes on after it.
    owner = (same * is_read[:, None]).argmax(2)  # [B, C, A]
    owned = is_read & (owner == torch.arange(answer_ids.shape[1], device=answer_ids.device)[:, None])  # [B, C, A]
    rank = (owned.flatten(1).cumsum(1) - 1).view_as(owner)  # [B, C, A] the node's number, where owned
    path = rank.gather(1, owner)  # [B, C, A]

    rows, candidates, depths = owned.nonzero(as_tuple=True)  # [n] each
    nodes = rank[rows, candidates, depths]  # [n]
    n_rows, n_nodes = answer_ids.shape[0], int(owned.flatten(1).sum(1).max())
    node_ids = answer_ids.new_zeros(n_rows, n_nodes)
    node_ids[rows, nodes] = answer_ids[rows, candidates, depths]
    node_depth = torch.zeros_like(node_ids)
    node_depth[rows, nodes] = depths
    entry, above = (depth <= depths[:, None]).nonzero(as_tuple=True)  # each node with each of its depths
    visible = torch.zeros(n_rows, n_nodes, n_nodes, dtype=torch.bool, device=answer_ids.device)
    visible[rows[entry], nodes[entry], path[rows[entry], candidates[entry], above]] = True
    return AnswerTrie(node_ids, node_depth, visible, path)


def walk(answer_ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Follow the likeliest token from the root to the end of an answer, all rows at once.

    This is greedy decoding with every token forbidden that continues no answer; where only one token may follow, it is
    taken without asking the LLM.

    Args:
        answer_ids: [B, C, A] as ``build_trie`` takes them.
        log_probs: [B, C, A] log-probability of each token of each answer given the prompt and its beginning.

    Returns:
        [B] the index of the chosen candidate; of those with equal answers, the first.
    """
    is_alive = torch.ones(
        answer_ids.shape[:2], dtype=torch.bool, device=answer_ids.device
    )  # agrees with what was chosen so far
    for tokens, found in zip(answer_ids.unbind(2), log_probs.unbind(2), strict=True):  # [B, C] each
        goes_on = is_alive & (tokens != IGNORED_LABEL)
        best = found.masked_fill(~goes_on, -torch.inf).argmax(1, keepdim=True)  # [B, 1]
        # Rows whose answer is complete have nothing that goes on: they stay as they are.
        is_alive = torch.where(goes_on.any(1, keepdim=True), goes_on & (tokens == tokens.gather(1, best)), is_alive)
    return is_alive.int().argmax(1)


def tree_masks(
    model: PreTrainedModel,
    attention_mask: torch.Tensor,
    visible: torch.Tensor,
    positions: torch.Tensor,
    dtype: torch.dtype,
    n_read: int = 0,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The masks under which prompts read what comes before, and nodes the prompt, their ancestors and themselves.

    Layers that see less by themselves see as much less here: the tree and the window. transformers counts a window in
    columns; behind a prompt these are the positions, in a tree they are not, so it is counted in positions.

    Example, a prompt of 3 tokens, nodes ``a``, ``b`` (after ``a``) and ``c`` (another beginning), window 3::

        position   0 1 2  3 4 3
              a    . # #  # . .
              b    . . #  # # .
              c    . # #  . . #

    Args:
        attention_mask: [B, T] of the prompts.
        visible: [B, Q, Q]
        positions: [B, T + Q]
        n_read: P, the first so many columns were read by an earlier pass: they are seen, and see nothing any more.

    Returns:
        [B, 1, T + Q - P, T + Q] bool, or what is added to the attention scores for eager attention; for an LLM whose layers are
        of several types, as its config's ``layer_types`` says, one such mask for each type.

    Raises:
        ValueError: an attention that takes no such mask, or layers of another type.
    """
    config = model.config.get_text_config()
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager", BMM_ATTENTION):
        raise ValueError(f"its attention is {attention}, expected sdpa or eager")
    n_prompt = attention_mask.shape[1]
    tree = torch.zeros(*positions.shape, positions.shape[1], dtype=torch.bool, device=positions.device)  # [B, T + Q, T + Q]
    tree[:, :, :n_prompt] = attention_mask.bool()[:, None]
    tree[:, :n_prompt, :n_prompt].tril_()
    tree[:, n_prompt:, n_prompt:] = visible
    # Padding reads itself: a softmax over nothing is NaN, which no zero weight undoes.
    tree.diagonal(dim1=1, dim2=2).fill_(True)
    tree = tree[:, n_read:]

    def mask_of(layer_type: str) -> torch.Tensor:
        mask = (tree & _reach(layer_type, config, positions, n_read))[:, None]
        if attention != "eager":
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return {name: mask_of(name) for name in sorted(set(layer_types))}
    # As transformers reads such a config: one kind of layer throughout.
    limits = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    limited = (name for name, limit in limits.items() if getattr(config, limit, None) is not None)
    return mask_of(next(limited, "full_attention"))


def with_mask_of_pairs(llm: nn.Module, prompts: EmbeddedPrompts) -> EmbeddedPrompts:
    """The same prompts [B, T], their mask one of pairs of tokens: transformers looks into a mask of tokens, and waits for the GPU."""
    model, positions = causal_lm(llm), prompts.position_ids
    no_nodes = torch.zeros(len(positions), 0, 0, dtype=torch.bool, device=positions.device)
    masks = tree_masks(model, prompts.attention_mask, no_nodes, positions, prompts.inputs_embeds.dtype)
    return replace(prompts, attention_mask=masks)


def _reach(layer_type: str, config: PretrainedConfig, positions: torch.Tensor, n_read: int) -> torch.Tensor:
    """[B, T + Q - P, T + Q] or [] bool, how far a layer of this type looks back from positions [B, T + Q], the first P aside."""
    query, key = positions[:, n_read:, None], positions[:, None, :]
    if layer_type == "full_attention":
        return torch.ones((), dtype=torch.bool, device=positions.device)
    if layer_type == "sliding_attention":
        return query - key < config.sliding_window
    if layer_type == "chunked_attention":
        return query // config.attention_chunk_size == key // config.attention_chunk_size
    raise ValueError(f"it has layers of type {layer_type}, expected full, sliding or chunked attention")
