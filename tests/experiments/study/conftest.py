"""Finished arms made by hand: their answers are what a test says they are."""

import json

import numpy as np
import pytest

from recbole_llara.evaluator.significance import wilson_interval
from recbole_llara.experiments.study.arms import Arm, Entry
from recbole_llara.experiments.study.definition import Study


@pytest.fixture
def make_study():
    """Builds a study of systems that are never run."""

    def make(names=("A", "B"), **keys):
        systems = {name: {"model": "LLaRA"} for name in names}
        keys = {"settings": {"checkpoint_dir": "saved", "protocol": "leave_one_out"}, **keys}
        return Study(name="made", title="Made <by hand>", systems=systems, **keys)

    return make


@pytest.fixture
def make_entry(tmp_path):
    """Builds the outcome of a run from which rows it answered correctly."""
    count = iter(range(100_000))

    def make(correct, valid_hit=0.5, llm="tiny", protocol="leave_one_out", candidates="c", title="Title", decoding="score"):
        correct = np.asarray(correct, dtype=bool)
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        with open(folder / "cases.jsonl", "w", encoding="utf-8") as file:
            for row, is_right in enumerate(correct.tolist()):
                titles = [f"{title} {number}" for number in range(3)]
                answer = titles[0] if is_right else titles[1]
                case = {"row": row, "user": str(row), "history_titles": titles, "candidates": ["1", "2", "3"]}
                case |= {"candidate_titles": titles, "target": "1", "target_title": titles[0], "correct": is_right}
                file.write(json.dumps({**case, "answer_title": answer, "answer_text": answer}) + "\n")
        n, hits = len(correct), int(correct.sum())
        interval = wilson_interval(hits, n)
        result = {"dataset": "ml-100k", "protocol": protocol, "model": "LLaRA", "n": n, "correct": hits, "valid_answers": n}
        result |= {"candidate_sha256": {"test": candidates}, "llm": llm, "decoding": decoding, "best_epoch": 0, "timings": {}}
        result |= {"interval_95": {"low": interval.low, "high": interval.high}, "hit_among_valid": hits / n}
        result["metrics"] = {"valid": {"hit@1": valid_hit}, "test": {"hit@1": hits / n, "validratio": 1.0}}
        paths = {key: str(folder) for key in ("run_dir", "result_file", "checkpoint")}
        return Entry(result, {**paths, "cases_file": str(folder / "cases.jsonl")}, 1.0)

    return make


@pytest.fixture
def outcomes_of(make_entry):
    """Builds outcomes from [seeds, n] answers of each system."""

    def make(answers, **keys):
        return {
            Arm(name, "ml-100k", 2020 + number, 2020): make_entry(correct, **keys)
            for name, of_seeds in answers.items()
            for number, correct in enumerate(of_seeds)
        }

    return make
