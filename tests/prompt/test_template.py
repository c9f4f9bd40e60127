"""Templates: every domain's file parses, and a template without its marks is refused."""

import re

import pytest
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import PROPERTIES
from recbole_llara.prompt.template import CANDIDATES, HISTORY, PromptTemplate, load_templates, prompts_digest
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError


@pytest.mark.parametrize("domain", ["movie", "game", "artist", "item"])
def test_every_domain_has_several_templates(domain):
    templates = load_templates(domain, 20)
    assert len(set(templates)) >= 3
    for template in templates:
        assert template.segments.index(HISTORY) < template.segments.index(CANDIDATES)
        assert not any("{" in segment for segment in template.segments if segment not in (HISTORY, CANDIDATES))


def test_the_number_of_candidates_is_told_as_it_is():
    template = PromptTemplate.parse("Seen {history}. One of {candidate_num}: {candidates}. Answer:", 7)
    assert template.segments == ("Seen", HISTORY, ". One of 7:", CANDIDATES, ". Answer:")


@pytest.mark.parametrize(
    "text", ["Seen {history}. Answer:", "{history} of {candidates}.", "a {history} {history} {candidates}."]
)
def test_a_template_without_its_marks_is_refused(text):
    with pytest.raises(UserError):
        PromptTemplate.parse(text, 20)


def test_an_unknown_domain_names_the_known_ones():
    with pytest.raises(UserError, match="artist, game, item, movie"):
        load_templates("films", 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: []", "expected templates alone: a list of at least one text"),
        ("templates: 3", "expected templates alone"),
        ("prompts: [a]", "holds the keys prompts, expected templates alone"),
        ("templates: ['a {history} b {candidates} c', 'a {history} b']", "template 2: .*holds {candidates} 0 times"),
        ("templates: ['a {histroy} b {candidates} c']", "template 1: .*holds {histroy}; did you mean '{history}'"),
        ("templates: ['a {history} {candidates}']", "template 1: .*must begin and end with text"),
    ],
)
def test_a_file_of_one_s_own_is_refused_with_what_is_wrong(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"prompt_file: .*mine.yaml.*{message}"):
        load_templates("item", 20, str(tmp_path / "mine.yaml"))


def test_an_absent_file_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {**write_toy_dataset(tmp_path), "prompt_file": "mine.yaml"}
    with pytest.raises(UserError, match="prompt_file: found no file 'mine.yaml'"):
        RunConfig("LLaRA", "toy", config_dict=keys)


def test_the_digest_knows_the_texts_and_not_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text((PROPERTIES / "prompt" / "movie.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert prompts_digest("item", str(tmp_path / "mine.yaml")) == prompts_digest("movie") != prompts_digest("item")


def test_a_stopped_run_does_not_go_on_under_other_prompts(keys, tmp_path, monkeypatch):
    prompts = 'templates: ["Seen {history}. Next among {candidates}:"]'
    (tmp_path / "mine.yaml").write_text(prompts, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("recbole_llara.quick_start.build_result", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt) as stop:
            run_recbole_llara("LLaRA", "toy", config_dict={**keys, "prompt_file": "mine.yaml"})
    (run,) = re.findall(r"--resume=(\S+)", str(stop.value))
    (tmp_path / "mine.yaml").write_text(prompts.replace("Seen", "Watched"), encoding="utf-8")
    with pytest.raises(UserError, match="was begun under other prompts"):
        run_recbole_llara(argv=[f"--resume={run}"])
    (tmp_path / "mine.yaml").write_text(prompts, encoding="utf-8")
    assert run_recbole_llara(argv=[f"--resume={run}"])["run_dir"] == run
