"""README, RESULTS.md and the pages of docs/: the pages build without a warning and load nothing from elsewhere, every command
exists, and the tour runs."""

import contextlib
import html
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from commands import arguments_of, check_run, check_study, write_files

from recbole_llara import __version__, cli
from recbole_llara.config import models
from recbole_llara.config.keys import known_keys
from recbole_llara.config.models import MODELS
from recbole_llara.experiments.command import search_parser
from recbole_llara.experiments.search_definition import read_command as read_search_command
from recbole_llara.serving import command as recommend

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS / "pages").as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("pages/**/*.md")}
TEXTS = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "RESULTS.md", "docs/CONTRIBUTING.md")] + [
    *PAGES.values()
]
LINES = [line for text in TEXTS for line in text.splitlines()]
COMMANDS = [arguments for arguments in arguments_of("run", LINES) if "--model" in arguments]
STUDY_COMMANDS = arguments_of("study", LINES)
SEARCH_COMMANDS = arguments_of("search", LINES)
OTHER_COMMANDS = [
    (command, words)
    for command in sorted(cli.COMMANDS.keys() - {"run", "study", "search"})
    for words in arguments_of(command, LINES)
]
IN_REPOSITORY = re.compile(r'<p style="display: none">In the repository.*?</p>')  # a site does not show it
FILES = (".py", ".ipynb")  # that pages link to and that are no pages
# What makes the tour's runs small; it goes over what the tour says.
TINY = {"epochs": 1, "max_train_rows": 64, "max_eval_rows": 20, "show_progress": False}
TINY_LLM = {"rec_epochs": 1, "rec_max_train_rows": 64, "rec_max_eval_rows": 20, "train_batch_size": 32}

without_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="the pages are built by the extra docs",
)


class _Links(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """One element."""
        values = dict(attributes)
        self.places.add(values.get("id"))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag in ("link", "script", "img", "iframe", "source"):
            self.loads.extend(values[name] for name in ("href", "src") if values.get(name))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; whatever makes a strict build fail, fails here."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "mkdocs.yml"), "-d", str(folder)],
        cwd=folder, env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@without_mkdocs
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not [address for address in _Links(path.read_text(encoding="utf-8")).loads if urlsplit(address).netloc], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


@without_mkdocs
def test_every_link_leads_somewhere(site: Path) -> None:
    shown = {path: IN_REPOSITORY.sub("", path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    pages = {path: _Links(text) for path, text in shown.items() if path.name != "404.html"}
    assert len(pages) == len(PAGES)
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.netloc or parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target in pages or (target.suffix in FILES and target.is_file()), f"{path.name}: {link}"
            assert not parts.fragment or unquote(parts.fragment) in pages[target].places, f"{path.name}: {link}"


@without_mkdocs
def test_what_a_page_includes_stands_in_it(site: Path) -> None:
    """A formatter of Python in Markdown turned a mark of inclusion into a comparison, which the page then showed."""
    shown = {path: html.unescape(re.sub("<[^>]+>", "", path.read_text(encoding="utf-8"))) for path in site.rglob("*.html")}
    assert not [path.name for path, text in shown.items() if re.search(r"--\s*8\s*<\s*--", text)]


@without_mkdocs
def test_the_readme_leads_to_places_of_pages(site: Path) -> None:
    links = re.findall(r"\]\(docs/pages/([^)#]+)\.md(?:#([^)]+))?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= 15
    for page, place in links:
        assert not place or place in _Links((site / f"{page}.html").read_text(encoding="utf-8")).places, (page, place)


@pytest.mark.parametrize(
    "name", ["README.md", "RESULTS.md", "docs/CHANGELOG.md", "docs/CONTRIBUTING.md", *(f"docs/pages/{page}" for page in PAGES)]
)
def test_links_between_files_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        assert urlsplit(link).netloc or not urlsplit(link).path or (path.parent / urlsplit(link).path).exists(), link


def _public_modules() -> set[str]:
    names = set()
    for path in (ROOT / "recbole_llara").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.add(".".join(parts))
    return names


def test_every_public_module_stands_in_the_reference_once() -> None:
    named = [name for text in PAGES.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    assert len(named) == len(set(named))
    assert set(named) == _public_modules()


def test_every_model_has_a_page() -> None:
    text = "\n".join(text for name, text in PAGES.items() if name.startswith("models/"))
    assert set(MODELS) <= set(re.findall(r"--model=(\w+)", text))


def test_there_are_commands_to_follow() -> None:
    assert len(COMMANDS) >= 40 and len(STUDY_COMMANDS) >= 20 and len(SEARCH_COMMANDS) >= 2
    assert {command for command, _ in OTHER_COMMANDS} == cli.COMMANDS.keys() - {"run", "study", "search"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_a_configuration(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of the test")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.yaml").write_text(_block("own_dataset.md", "yaml"), encoding="utf-8")
    for name, text in PAGES.items():
        if name.startswith("extend/"):
            write_files(text, tmp_path)
    for name in ("vectors.npy", "vectors.ids.txt"):  # as if they had been made
        (tmp_path / name).touch()
    check_run(command, tmp_path)


@pytest.mark.parametrize("command", STUDY_COMMANDS)
def test_a_study_command_is_a_study(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "of the test")
    monkeypatch.setattr(models, "MODELS", models.MODELS.copy())  # as it was, after the test
    write_files(PAGES["extend/model.md"], tmp_path)
    check_study(command, tmp_path)


@pytest.mark.parametrize("command", SEARCH_COMMANDS)
def test_a_search_command_is_a_search(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    search = read_search_command(*search_parser().parse_known_args(shlex.split(command)))
    assert len(search.parameters) >= 1 and search.max_evals >= 4


def test_the_pages_parameter_file_can_be_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(PAGES["search.md"], tmp_path)
    command = ["--model=LLaRA", "--dataset=ml-100k", "--params_file=own.hyper", "--algo=bayes"]
    assert len(read_search_command(*search_parser().parse_known_args(command)).parameters) == 4


@pytest.mark.parametrize(("command", "words"), OTHER_COMMANDS)
def test_the_options_of_another_command_exist(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    declared = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    given = set(re.findall(r"(?<!\S)--(\w+)", words))
    assert given and given <= declared | known_keys("LLaRA", "SASRec")


def test_pages_that_include_a_file_lead_readers_of_the_repository_to_it() -> None:
    """Who follows a link in the repository sees the mark of inclusion alone; a hoster that shows Markdown drops ``style``."""
    including = {
        page: found[1] for page, text in PAGES.items() if (found := re.search(r'^--8<-- "(.*\.md)"', text, re.MULTILINE))
    }
    assert {"results.md", "changelog.md"} <= including.keys()
    for page, included in including.items():
        link = re.search(r'href="(.*?)"', IN_REPOSITORY.search(PAGES[page])[0])[1]
        assert (DOCS / "pages" / page).parent.joinpath(link).resolve() == ROOT / included


def test_targets_of_make_exist() -> None:
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split())
    named = {name for text in TEXTS for name in re.findall(r"(?:`|^ *)make ([a-z][a-z0-9-]+)(?=[ `\n])", text, re.MULTILINE)}
    assert {"quickstart", "install", "docs", "papers"} <= named and named <= targets


def test_own_keys_in_tables_exist() -> None:
    for page, model in (("llara", "LLaRA"), ("rsllm", "RSLLM"), ("chat", "ChatLLM"), ("morec", "MoRec")):
        table = PAGES[f"models/{page}.md"].split("| key |")[1].split("\n\n")[0]
        cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        names = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
        assert names and names <= known_keys(model, "SASRec"), page


def _block(page: str, language: str) -> str:
    """The first block of a language."""
    return _blocks(page, language)[0]


def _blocks(page: str, language: str) -> list[str]:
    """The blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def _small(words: list[str]) -> list[str]:
    """The words of a run with ``TINY`` over them."""
    keys = TINY | (TINY_LLM if "--model=LLaRA" in words else {})
    kept = [word for word in words if word.removeprefix("--").partition("=")[0] not in keys]
    return kept + [f"--{key}={value}" for key, value in keys.items()]


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the tour was followed line by line, and what it printed."""
    folder, printed, followed = tmp_path_factory.mktemp("tour"), io.StringIO(), []
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGES["tour.md"], re.DOTALL | re.MULTILINE):
            if language == "python":
                _execute(block)
                followed.append("python")
                continue
            for words in map(shlex.split, block.splitlines()):
                if words[:2] == ["recbole-llara", "study"]:
                    continue  # a quarter of an hour
                if words[1] == "run_recbole_llara.py":
                    assert cli.main(_small(words[2:])) == 0
                    followed.append(words[2])
                else:
                    assert words[:2] == ["recbole-llara", "recommend"]
                    assert (
                        recommend.recommend_main([word.replace("saved/RUN", str(_run_of("LLaRA"))) for word in words[2:]]) == 0
                    )
                    followed.append("recommend")
    assert followed == ["--model=SASRec", "--model=LLaRA", "python", "recommend"]
    return folder, printed.getvalue()


def _execute(code: str, names: dict[str, Any] | None = None) -> None:
    """Run the code of a page; ``names`` are kept for the next block."""
    exec(compile(code, "a page", "exec"), {} if names is None else names)


def _run_of(model: str) -> Path:
    """The folder of the only run of a model."""
    (run,) = Path("saved").glob(f"{model}-ml-100k-leave_one_out-*")
    return run


def test_the_tour_compares_and_recommends(toured: tuple[Path, str]) -> None:
    printed = toured[1]
    assert re.search(r"\| SASRec .*\n\| LLaRA\(SASRec\) ", printed)
    ranked = re.findall(r"^ +([1-5])  (.*?)  ", printed, re.MULTILINE)
    assert [rank for rank, _ in ranked] == ["1", "2", "3", "4", "5"]
    assert not {title for _, title in ranked} & {"Toy Story", "GoldenEye", "Four Rooms"}


def test_a_run_from_python_as_the_page_says(toured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toured[0])
    keys = {**TINY, **TINY_LLM, "llm_tuning": "frozen", "protocol": "leave_one_out"}
    names: dict[str, Any] = {}
    _execute(_block("run.md", "python").replace('{"protocol": "leave_one_out"}', repr(keys)), names)
    result = names["result"]
    assert 0 <= result["test_result"]["hit@1"] <= 1 and Path(result["cases_file"]).is_file()
    shutil.rmtree(Path(result["cases_file"]).parent)  # the tour's is the only run of its model again


def test_two_runs_are_compared_as_the_page_says(
    toured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toured[0])
    names: dict[str, Any] = {}
    for block in _blocks("compare.md", "python"):
        _execute(block.replace("saved/RUN_A", str(_run_of("SASRec"))).replace("saved/RUN_B", str(_run_of("LLaRA"))), names)
    told = capsys.readouterr().out
    assert told.count(f"Of n = {TINY['max_eval_rows']} rows") == 2 and "HitRatio@1 of mine" in told


def test_a_run_recommends_as_the_page_says(
    toured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toured[0])
    _execute(_block("recommend.md", "python").replace("saved/RUN", str(_run_of("LLaRA"))))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3"]
    asked = json.loads(_block("recommend.md", "json"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked) + '\n{"user": "u2"}\n'))
    assert recommend.recommend_main(["--run", str(_run_of("LLaRA")), "--jsonl"]) == 0
    answer, refused = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer["user"] == "u1" and len(answer["recommendations"]) == asked["k"]
    assert {"item_id", "title", "score", "rank", "recommender_rank"} == answer["recommendations"][0].keys()
    assert {item["title"] for item in answer["recommendations"]} <= set(asked["candidates"])
    assert "error" in refused


def test_citation_and_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert [reference["title"].split(":")[0] for reference in citation["references"]] == [
        "LLaRA", "Towards a Unified Paradigm", "RecBole",
    ]  # fmt: skip
    assert f"\n## {__version__}\n" in (DOCS / "CHANGELOG.md").read_text(encoding="utf-8")


@without_mkdocs
def test_docstrings_become_markdown() -> None:
    spec = importlib.util.spec_from_file_location("docs_docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = ["Args:", "    a, b: [B] [T]", "Shapes::", "", "    a, b: [B] [T]", "", "c, d end [it]."]
    assert list(module.rewritten(lines)) == [
        "Args:", "    a: [B] \\[T]", "    b: [B] \\[T]", "Shapes:", "", "    a, b: [B] [T]", "", "c, d end [it].",
    ]  # fmt: skip
