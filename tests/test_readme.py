"""The README: short, true of the code, its figure and prompt the project's own. What reads its commands is ``test_docs``."""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from recbole_llara.config.models import MODELS
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import property_files
from recbole_llara.data.dataset import prepare_data
from recbole_llara.experiments.study_definition import load_study
from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.prompt.representation import REPRESENTATIONS
from recbole_llara.prompt.template import load_templates

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
SPEC = importlib.util.spec_from_file_location("docs_figure", ROOT / "docs" / "figure.py")
FIGURE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(FIGURE)


def _page(name):
    return (ROOT / "docs" / "pages" / name).read_text(encoding="utf-8")


def _first_cells(text, header):
    """What stands in backticks in the first column of the table with this header."""
    table = text.split(header)[1].split("\n\n")[0]
    return {name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1] if "|" in line else "")}


def test_the_readme_is_short():
    assert len(README) <= 8000


def test_results_link_to_no_page():
    assert not re.search(r"\]\([^)]*docs/", RESULTS)


def test_every_model_representation_and_study_stands_in_its_table():
    assert set(MODELS) <= _first_cells(README, "| model | what it is |\n")
    assert _first_cells(_page("models/prompts.md"), "| representation | an item reads |\n") == set(REPRESENTATIONS)
    assert _first_cells(_page("studies.md"), "| study | what it compares |\n") == set(property_files("study"))


def test_the_prompt_is_that_of_the_first_test_row():
    data = prepare_data(RunConfig("LLaRA", "ml-100k", config_dict={"protocol": "leave_one_out"}))
    titles, row = data.catalogue.titles, data.test_data.dataset.inter_feat[0]
    history, candidates = ([f"{titles[item]}[*]" for item in row[f"{name}_id_list"].tolist()] for name in ("item", "candidate"))
    history[2:-1], candidates[2:-3] = ["…"], ["…"]
    prompt = load_templates("movie", 20)[0].render(history, candidates)
    shown, answer = FIGURE.prompt_of(_page("models/prompts.md"))
    assert shown.replace("\n", " ") == prompt
    assert answer == titles[row["item_id"].item()] and f"The answer is *{answer}*." in README


def test_the_prompt_is_drawn_word_for_word():
    """``python docs/figure.py`` makes it so."""
    shown, answer = FIGURE.prompt_of(_page("models/prompts.md"))
    drawn = FIGURE.drawn_prompt(shown, answer)
    assert FIGURE.PROMPT_FIGURE.read_text(encoding="utf-8") == drawn
    lines = [line for line in ElementTree.fromstring(drawn) if line.get("class") == "prompt"]
    assert "\n".join("".join(line.itertext()) for line in lines) == f"{shown} {answer}"
    by_colour = {}
    for span in (span for line in lines for span in line):
        by_colour.setdefault(span.get("class"), []).append(span.text)
    assert set(by_colour["w3"]) == {"[*]"} and by_colour["w4"] == [answer]
    assert "".join(by_colour["w1"]).startswith(" Infinity, A Time") and "Jumanji" in "".join(by_colour["w2"])
    assert not {"Jumanji", "Infinity", answer} & set("".join(by_colour["w0"]).split())


def test_the_figure_shows_the_results():
    """``python docs/figure.py`` makes it so."""
    systems = FIGURE.measured(RESULTS)
    assert {system.system for system in systems} == set(load_study("main_results").systems)
    assert FIGURE.FIGURE.read_text(encoding="utf-8") == FIGURE.drawn(systems)


def _tables(page):
    """The tables of a page: for each its header and its rows, cells without blanks around them."""
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        yield header, rows


def _number(value):
    return "" if value is None else f"{value:.4f}".lstrip("0")


@pytest.mark.parametrize(("dataset", "column"), [("ml-100k", "MovieLens"), ("steam", "Steam"), ("lastfm-llara", "LastFM")])
def test_the_papers_numbers_are_those_of_the_studies(dataset, column):
    """Page "Reproduce the papers"."""
    page, found = _page("reproduce.md"), 0
    later = load_study("main_results").published[1].hit[dataset]
    published = [load_study(name).published[0].hit[dataset] for name in ("main_results", "learning_strategy", "rsllm_ablation")]
    section = page.split(f"### {column}\n")[1].split("\n##")[0]
    (_, rows), *_ = _tables(section)
    for name, *_, papers, again in rows:
        assert papers.split(" ")[0] == _number(published[0].get(name)) and again == _number(later.get(name)), name
    assert {name for name, *_ in rows} >= set(published[0])
    for header, rows in _tables(page):
        if f"{column}, paper" in header:
            place = header.index(f"{column}, paper")
            (table,) = [one for one in published[1:] if set(one) <= {row[0] for row in rows}]
            assert {row[0]: row[place] for row in rows if row[place]} == {name: _number(hit) for name, hit in table.items()}
            found += 1
    assert found == 2


def test_our_numbers_beside_the_papers_are_those_of_the_results():
    """Page "Reproduce the papers"."""
    measured = [row for header, rows in _tables(RESULTS) for row in rows if header[0] == "system"]
    checked = 0
    for _, rows in _tables(_page("reproduce.md")):
        for name, *cells in rows:
            for hit, low, high in (re.findall(r"^(\.\d+) \[(\.\d+), (\.\d+)\]", cell)[0] for cell in cells if "[." in cell):
                shown = {f"{hit} [{low}, {high}]", f"{hit} {low} to {high}"}
                assert any(row[0] == name and shown & {*row, " ".join(row[1:3])} for row in measured), (name, hit)
                checked += 1
    assert checked >= 60


def test_the_embedded_llm_is_as_described():
    page = _page("models/embedded_llm.md")
    with safe_open(TINY_LLAMA_DIR / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    config = AutoConfig.from_pretrained(TINY_LLAMA_DIR)
    pieces = len(AutoTokenizer.from_pretrained(TINY_LLAMA_DIR))
    size = sum(path.stat().st_size for path in TINY_LLAMA_DIR.iterdir())
    card = (TINY_LLAMA_DIR / "README.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert f"{parameters / 1e6:.1f} million parameters" in text
        assert f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads" in text
        assert f"{pieces:,} pieces" in text
    assert ModelCard(card).data.license == "mit"
    figures = re.findall(r"(?<=[ (])\.\d\d\b", card.split("## What it can do")[1].split("## Use")[0])
    assert set(figures) <= set(re.findall(r"(?<=[ (])\.\d\d\b", page)) and len(figures) >= 5
    assert size <= 12e6
