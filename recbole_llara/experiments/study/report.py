"""A study's folder: ``report.md``, ``report.html``, ``table.tex``, ``runs.csv``, ``comparisons.csv`` and ``figures/``."""

from collections.abc import Mapping

from recbole_llara.checkpoint.run_folder import write_atomically
from recbole_llara.experiments.study.arms import Arm, Entry, Failure
from recbole_llara.experiments.study.cases import find_cases
from recbole_llara.experiments.study.definition import Study
from recbole_llara.experiments.study.figures import draw, write_pngs
from recbole_llara.experiments.study.page import page
from recbole_llara.experiments.study.summary import summarise
from recbole_llara.experiments.study.tables import comparisons_csv, latex, markdown, runs_csv


def write_report(study: Study, outcomes: Mapping[Arm, Entry | Failure]) -> str:
    """Write everything that a finished study tells.

    Args:
        study: what was run.
        outcomes: of all its arms.

    Returns:
        What to print: the Markdown report and where the rest lies.
    """
    summaries = summarise(study, outcomes)
    figures = draw(study, summaries)
    cases = {}
    if "cases" in study.figures:
        for summary in summaries:
            found = [find_cases(summary, pattern, seed=study.seeds[0]) for pattern in study.cases]
            cases[summary.dataset] = [entry for entry in found if entry is not None]
    text = markdown(study, summaries)
    files = {
        "report.md": text,
        "report.html": page(study, summaries, figures, cases),
        "table.tex": latex(study, summaries),
        "runs.csv": runs_csv(dict(outcomes)),
        "comparisons.csv": comparisons_csv(summaries),
    }
    folder = study.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))
    missing = write_pngs(figures, folder / "figures")
    lines = [text, f"written: {folder}/report.html, report.md, table.tex, runs.csv, comparisons.csv"]
    if missing is not None:
        lines.append(missing)
    lines.append("each run's folder is named in runs.csv; its cases.jsonl has every test row, with what was shown and answered")
    return "\n".join(lines) + "\n"
