import pytest

from recbole_llara.evaluator.report import comparison_table, paired_test_lines
from recbole_llara.utils.errors import UserError


def result(model: str, hit: float, rec_model: str | None = None, **changes) -> dict:
    return {
        "model": model,
        "rec_model": rec_model,
        "dataset": "ml-100k",
        "protocol": "leave_one_out",
        "decoding": "generate" if rec_model else None,
        "seed": 1,
        "n": 943,
        "candidate_sha256": {"valid": "aa", "test": "bb"},
        "interval_95": {"share": hit, "low": hit - 0.03, "high": hit + 0.03},
        "metrics": {"test": {"hit@1": hit, "validratio": 1.0}},
        **changes,
    }


def case(row: int, correct: bool, candidates: tuple[str, ...] = ("1", "2")) -> dict:
    return {"row": row, "user": str(row), "target": "1", "candidates": list(candidates), "correct": correct}


def test_table_names_systems_and_leaves_unmeasured_columns_open():
    sasrec = result("SASRec", 0.428, metrics={"test": {"hit@1": 0.428, "validratio": 1.0, "hit@5": 0.7, "ndcg@10": 0.6}})
    lines = comparison_table([sasrec, result("LLaRA", 0.4421, "SASRec")]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["Model", "HitRatio@1", "95 % interval", "ValidRatio", "n", "HitRatio@5", "NDCG@10"]
    assert cells[2] == ["SASRec", "0.4280", "0.398 to 0.458", "1.0000", "943", "0.7000", "0.6000"]
    assert cells[3] == ["LLaRA(SASRec)", "0.4421", "0.412 to 0.472", "1.0000", "943", "—", "—"]
    assert len({len(line) for line in lines}) == 1


def test_equal_names_are_told_apart():
    table = comparison_table([result("LLaRA", 0.4, "SASRec"), result("LLaRA", 0.5, "SASRec", seed=2)])
    assert "LLaRA(SASRec) [generate, seed 1]" in table
    assert "LLaRA(SASRec) [generate, seed 2]" in table


@pytest.mark.parametrize(
    "changes",
    [{"n": 95}, {"candidate_sha256": {"valid": "aa", "test": "cc"}}, {"dataset": "ml-1m"}, {"protocol": "llara"}],
)
def test_other_questions_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        comparison_table([result("SASRec", 0.4), result("Caser", 0.4, **changes)])


def test_no_results_are_refused():
    with pytest.raises(UserError, match="No results"):
        comparison_table([])


def test_paired_test_counts_rows_whatever_their_order():
    a = [case(row, row < 9) for row in range(12)]
    b = [case(row, row == 0) for row in reversed(range(12))]
    lines = paired_test_lines(a, b, "A", "B")
    assert lines[0] == "Of n = 12 rows, both right 1, only A 8, only B 0, neither 3."
    assert "p = 0.00781: a difference at the 0.05 level" in lines[1]  # 2 / 2^8
    assert "no difference" in paired_test_lines(a, a, "A", "A")[1]


def test_paired_test_refuses_other_rows_or_candidates():
    with pytest.raises(UserError, match="same rows"):
        paired_test_lines([case(0, True)], [case(1, True)], "A", "B")
    with pytest.raises(UserError, match="Row 0"):
        paired_test_lines([case(0, True)], [case(0, True, ("1", "3"))], "A", "B")
