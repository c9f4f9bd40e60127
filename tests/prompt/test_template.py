"""Templates: every domain's file parses, and a template without its marks is refused."""

import pytest

from recbole_llara.prompt.template import CANDIDATES, HISTORY, PromptTemplate, load_templates
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
