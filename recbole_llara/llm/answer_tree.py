"""The candidates' answers as one packed token tree per row, so that one pass of the LLM scores them all."""

from dataclasses import dataclass

import torch

IGNORED_LABEL = -100


@dataclass(frozen=True)
class AnswerTrie:
    """Answers of B rows of C candidates, of up to A tokens, whose shared beginnings are stored once.

    A *node* is a token that another one follows in some answer; a row has up to Q of them. What comes last in
    every answer (the EOS) is predicted, never read, and so is no node.

    Args:
        answer_ids: [B, C, A] token ids, padded on the right with -100.
        lengths: [B, C] tokens of each answer.
        node_ids: [B, Q] token ids of the nodes, 0 beyond the row's last.
        node_depth: [B, Q] 0 for first tokens of answers.
        visible: [B, Q, Q] bool, whether a node (second axis) reads another (third): itself and its ancestors.
        path: [B, C, A] the node of each token of each answer; meaningless for last tokens and padding.
    """

    answer_ids: torch.Tensor
    lengths: torch.Tensor
    node_ids: torch.Tensor
    node_depth: torch.Tensor
    visible: torch.Tensor
    path: torch.Tensor


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
    _refuse_continued_answers(same, lengths)
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
    return AnswerTrie(answer_ids, lengths, node_ids, node_depth, visible, path)


def _refuse_continued_answers(same: torch.Tensor, lengths: torch.Tensor) -> None:
    """Raise if an answer is the beginning of a longer one: without an EOS at its end it could not be chosen.

    Args:
        same: [B, C, C, A]
        lengths: [B, C]
    """
    last = (lengths - 1)[:, :, None, None].expand(-1, -1, lengths.shape[1], 1)  # [B, C, C, 1]
    whole = same.gather(3, last).squeeze(3).bool()  # [B, C, C] answer d begins with all of answer c
    if bool((whole & (lengths[:, None] > lengths[:, :, None])).any()):
        raise ValueError("an answer is the beginning of another: expected every answer to end with EOS")


def walk(trie: AnswerTrie, log_probs: torch.Tensor) -> torch.Tensor:
    """Follow the likeliest token from the root to the end of an answer, all rows at once.

    This is greedy decoding with every token outside the tree forbidden; where only one token may follow, it is
    taken without asking the LLM.

    Args:
        trie: the rows' answers.
        log_probs: [B, C, A] log-probability of each token of each answer given the prompt and its beginning.

    Returns:
        [B] the index of the chosen candidate; of those with equal answers, the first.
    """
    is_alive = torch.ones_like(trie.lengths, dtype=torch.bool)  # [B, C] agrees with what was chosen so far
    for step in range(trie.answer_ids.shape[2]):
        tokens = trie.answer_ids[:, :, step]  # [B, C]
        goes_on = is_alive & (step < trie.lengths)
        best = log_probs[:, :, step].masked_fill(~goes_on, -torch.inf).argmax(1, keepdim=True)  # [B, 1]
        # Rows whose answer is complete have nothing that goes on: they stay as they are.
        is_alive = torch.where(goes_on.any(1, keepdim=True), goes_on & (tokens == tokens.gather(1, best)), is_alive)
    return is_alive.int().argmax(1)
