"""What a study says of its progress."""

import re

from recbole_llara.experiments.study.progress import Progress, spoken


def test_lengths_of_time():
    assert (spoken(40), spoken(700), spoken(7500)) == ("40 s", "12 min", "2 h 05 min")


def test_every_run_has_a_line_before_and_after(capsys):
    progress = Progress(4)
    progress.reused(1)
    progress.begin("SASRec", None)
    progress.end("SASRec", "HitRatio@1 0.5000, 3 s")
    progress.begin("LLaRA", 700.0)
    lines = [re.sub(r"\d+ s: ", "0 s: ", line, count=1) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "Study [#####               ] 1/4, 0 s: 1 of 4 runs are taken from earlier calls (--fresh runs them again)",
        "Study [#####               ] 1/4, 0 s: SASRec ... time left not known yet",
        "Study [##########          ] 2/4, 0 s: SASRec: HitRatio@1 0.5000, 3 s",
        "Study [##########          ] 2/4, 0 s: LLaRA ... about 12 min left",
    ]
