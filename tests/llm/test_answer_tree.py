import pytest
import torch

from recbole_llara.llm.answer_tree import build_trie, walk

EOS = 1


def padded(rows):
    """Answers as nested lists -> [B, C, A]."""
    longest = max(len(answer) for row in rows for answer in row)
    return torch.tensor([[answer + [-100] * (longest - len(answer)) for answer in row] for row in rows])


def random_answers(n_rows, n_candidates, seed):
    """Short answers over three tokens, so that beginnings and whole answers repeat."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    return padded([[[draw(2, 5) for _ in range(draw(0, 5))] + [EOS] for _ in range(n_candidates)] for _ in range(n_rows)])


def test_worked_example_of_the_docstring():
    the, matrix, apes, alien = 5, 6, 7, 8
    trie = build_trie(padded([[[the, matrix, EOS], [the, apes, EOS], [alien, EOS]]]))
    assert trie.node_ids.tolist() == [[the, matrix, apes, alien]]
    assert trie.node_depth.tolist() == [[0, 1, 1, 0]]
    assert trie.visible[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert trie.path[0, :, :2].tolist() == [[0, 1], [0, 2], [3, trie.path[0, 2, 1]]]


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_tree_built_by_a_loop(seed):
    answers = random_answers(4, 6, seed)
    trie = build_trie(answers)
    for row in range(4):
        beginnings = []
        for answer in answers[row].tolist():
            tokens = [token for token in answer if token >= 0]
            for end in range(1, len(tokens)):
                if tuple(tokens[:end]) not in beginnings:
                    beginnings.append(tuple(tokens[:end]))
        n_nodes = len(beginnings)
        assert trie.node_ids[row, :n_nodes].tolist() == [beginning[-1] for beginning in beginnings]
        assert trie.node_depth[row, :n_nodes].tolist() == [len(beginning) - 1 for beginning in beginnings]
        reads = [[above == node[: len(above)] for above in beginnings] for node in beginnings]
        assert trie.visible[row, :n_nodes, :n_nodes].tolist() == reads
        assert not trie.visible[row, n_nodes:].any() and not trie.visible[row, :, n_nodes:].any()
        for candidate, answer in enumerate(answers[row].tolist()):
            tokens = [token for token in answer if token >= 0]
            expected = [beginnings.index(tuple(tokens[:end])) for end in range(1, len(tokens))]
            assert trie.path[row, candidate, : len(expected)].tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_walk_equals_a_greedy_loop(seed):
    answers = random_answers(8, 6, seed)
    # Likelihoods belong to beginnings, so that candidates agree on the tokens they share.
    table = {}
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.zeros(answers.shape)
    rows = [[[token for token in answer if token >= 0] for answer in row] for row in answers.tolist()]
    for b, row in enumerate(rows):
        for c, tokens in enumerate(row):
            for end in range(len(tokens)):
                key = (b, *tokens[: end + 1])
                table.setdefault(key, torch.rand((), generator=generator).item())
                log_probs[b, c, end] = table[key]
    expected = []
    for b, row in enumerate(rows):
        chosen = []
        while chosen not in row:
            following = {tokens[len(chosen)] for tokens in row if tokens[: len(chosen)] == chosen}
            chosen = [*chosen, max(following, key=lambda token: table[(b, *chosen, token)])]
        expected.append(row.index(chosen))
    assert walk(answers, log_probs).tolist() == expected


def test_refuses_answers_that_cannot_be_told_apart_by_their_end():
    with pytest.raises(ValueError, match="beginning of another"):
        build_trie(padded([[[5, 6], [5, 6, 7]]]))
    with pytest.raises(ValueError, match="without tokens"):
        build_trie(padded([[[5, EOS], []]]))
    with pytest.raises(ValueError, match="padding inside"):
        build_trie(torch.tensor([[[5, -100, EOS]]]))
