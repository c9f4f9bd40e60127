"""Measures what the pages tell: runs the studies of runs.yaml, keeps the numbers of each in measured/, and writes them into the pages.

``python docs/results/make.py`` (``make results``) runs every study that has no file in measured/, or one of other settings, systems or seeds; names
of runs.yaml behind it run these alone, with ``--fresh`` also where a file is there. ``--write`` runs nothing. A study that was stopped resumes: its finished
systems are kept in saved/.

In a page, what stands between ``<!-- = CALL -->`` and ``<!-- / -->`` is written by the function of ``WRITERS`` that the call names, such as
``table("quickstart")``. Where one of its runs has not been measured, the page keeps what is there.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jinja2 import Environment
from runs import HERE, NotMeasured, Records, load_runs, stored, study_of, words_of
from writers import WRITERS

from recbole_llara.experiments.study_definition import Study
from recbole_llara.experiments.study_record import compared, record_text
from recbole_llara.utils.atomic import write_text

ROOT = HERE.parent.parent
WRITTEN = re.compile(r"(<!-- = (?P<call>.+?) -->)(?P<text>.*?)(<!-- / -->)", re.DOTALL)
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs" / "pages").rglob("*.md")))
    if WRITTEN.search(path.read_text(encoding="utf-8"))
)


def measure(name: str, run: Mapping[str, Any], is_fresh: bool) -> bool:
    """Run a study and keep its numbers, with the commit; returns whether all of its systems ended well."""
    commit = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--", "recbole_llara", "properties")
    command = [sys.executable, "-m", "recbole_llara", "study", *words_of(run), *(["--fresh"] if is_fresh else [])]
    status = subprocess.run(command, cwd=ROOT).returncode
    if status not in (0, 1):  # stopped, or refused: nothing new was measured
        sys.exit(status)
    record = json.loads((ROOT / study_of(run).folder / "study.json").read_text(encoding="utf-8"))
    record["commit"] = f"{commit}, changed" if changed else commit
    write_text(HERE / "measured" / f"{name}.json", record_text(record))
    return status == 0


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def written(text: str, records: Records) -> str:
    """The text of a page with the numbers of records."""
    environment = Environment()
    functions = {function.__name__: partial(function, records) for function in WRITERS}

    def write(found: re.Match[str]) -> str:
        try:
            told = str(environment.compile_expression(found["call"], undefined_to_none=False)(functions))
        except NotMeasured:
            return found[0]
        return f"{found[1]}\n\n{told}\n\n{found[4]}" if "\n" in found["text"] else f"{found[1]}{told}{found[4]}"

    return WRITTEN.sub(write, text)


def main(argv: Sequence[str]) -> int:
    """Run what is asked for and write the page; returns 1 where a system failed."""
    runs = load_runs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", choices=[[], *runs], metavar="RUN", help=f"of runs.yaml: {', '.join(runs)}")
    parser.add_argument("--fresh", action="store_true", help="measure again what has been measured")
    parser.add_argument("--write", action="store_true", help="run nothing, write the page")
    arguments = parser.parse_args(argv)
    status = 0
    for name in [] if arguments.write else arguments.runs or runs:
        if is_whole(stored().get(name), study_of(runs[name])) and not arguments.fresh:
            sys.stderr.write(f"{name}: measured already, its numbers are in measured/{name}.json; --fresh measures it again\n")
        else:
            sys.stderr.write(f"{name}: {runs[name]['budget']}\n")
            status |= not measure(name, runs[name], arguments.fresh)
            write_pages()
    write_pages()
    return int(status)


def is_whole(record: Mapping[str, Any] | None, study: Study) -> bool:
    """Whether a stored record is of the study as it is now: its settings and seeds, and every system of it, of each dataset."""
    if record is None or tuple(record["seeds"]) != study.seeds or tuple(record["datasets"]) != study.datasets:
        return False
    if any(record[key] != value for key, value in compared(study).items()):
        return False
    told = ({*of_dataset["systems"], *of_dataset["failures"]} for of_dataset in record["datasets"].values())
    return all(systems == set(study.systems) for systems in told)


def write_pages() -> None:
    """Write what has been measured into every page."""
    records = stored()
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        write_text(ROOT / page, written(text, records))
    subprocess.run([sys.executable, str(ROOT / "docs" / "figure.py")], check=True)  # draws the first table of RESULTS.md


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
