"""The pretraining's course: phases follow each other, and nothing jumps inside one."""

from itertools import pairwise

import pytest

from recbole_llara.tiny_llama.pretrain import Phase, course, foundation_stage, opener_stage, selection_stage

COURSE = list(course([Phase(1000, 2e-3, foundation_stage), Phase(500, 1e-3, selection_stage)]))


def test_phases_follow_each_other():
    stages = [stage for stage, _ in COURSE]
    assert len(stages) == 1500
    assert stages[0] == foundation_stage(0.0) and stages[999] == foundation_stage(0.999)
    assert stages[1000] == selection_stage(0.0)


def test_each_phase_warms_up_to_its_peak_and_falls_to_a_twentieth():
    rates = [rate for _, rate in COURSE]
    assert rates[0] == pytest.approx(2e-3 / 200) and rates[1000] == pytest.approx(1e-3 / 200)
    assert max(rates[:1000]) == pytest.approx(2e-3) and max(rates[1000:]) == pytest.approx(1e-3)
    assert rates[999] == pytest.approx(1e-4, rel=0.01) and rates[-1] == pytest.approx(5e-5, rel=0.01)


@pytest.mark.parametrize("stage", [foundation_stage, selection_stage, opener_stage])
def test_tasks_never_get_harder_at_a_jump(stage):
    stages = [vars(stage(step / 200)) for step in range(201)]
    for name in stages[0]:
        values = [float(entry[name]) for entry in stages]
        width = max(values) - min(values)
        step = max(abs(after - before) for before, after in pairwise(values))
        assert step <= max(1.0 if name in ("candidate_max", "history_max") else 0.0, 0.05 * width)
