"""Which candidate a chat model's message names: least unwrapped first, never by a title inside a sentence, never by a guess."""

import random

import pytest

from recbole_llara.model.chat_client import without_reasoning
from recbole_llara.model.chat_llm import read_answer

TITLES = [
    "M",
    "The Matrix",
    "Alien",
    "Aliens",
    "1. FC Köln",
    "FC Köln",
    "12 Monkeys",
    "E.T.",
    "Answer: No",
    "a\nb, c",
    "“Heroes”",
]


def named(message, titles=TITLES, is_cut=False):
    place, _ = read_answer(message, titles, is_cut)
    return None if place is None else titles[place]


@pytest.mark.parametrize("title", TITLES)
def test_a_title_as_it_stands_needs_no_unwrapping(title):
    assert read_answer(title, TITLES) == (TITLES.index(title), False)
    assert read_answer(f" {title}\n", TITLES) == (TITLES.index(title), False)


WRAPPINGS = [
    "<think>Alien or Aliens?\nThe first.</think>\n\n{}",
    "Alien or Aliens?\n</think>{}",
    "<thinking>\nM\n</thinking>\n<think>\nAlien\n</think>\n{}",
    "1. {}",
    "3) {}",
    "- {}",
    "* {}",
    "#1 {}",
    "Answer: {}",
    "**Answer:** {}",
    "**Answer: {}**",
    "The answer is {}.",
    "My final recommendation: **{}**.",
    "Next movie: {}",
    '"{}"',
    "“{}”.",
    "`{}`",
    "***{}***",
    "1. **{}**",
    "{}\n\nThis fits the history best.",
    "Sure! Here is my choice:\n\n**{}**",
    "## {}\n",
]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("title", [title for title in TITLES if "\n" not in title and title != "FC Köln"])
def test_wrapping_is_taken_off(wrapping, title):
    assert read_answer(wrapping.format(title), TITLES) == (TITLES.index(title), True)


@pytest.mark.parametrize("wrapping", ["{}", *WRAPPINGS])
def test_another_case_names_a_title_where_no_title_has_it(wrapping):
    assert named(wrapping.format("THE MATRIX")) == "The Matrix"
    assert named(wrapping.format("alien"), ["ALIEN", "Aliens"]) == "ALIEN"
    assert named(wrapping.format("alien"), ["ALIEN", "alien", "Alien"]) == "alien"
    assert named(wrapping.format("aLien"), ["ALIEN", "alien"]) is None


def test_the_least_unwrapped_reading_counts():
    assert named("1. FC Köln") == "1. FC Köln" and named("2. FC Köln") == "FC Köln"
    assert named("1. 1. FC Köln.") == "1. FC Köln"
    assert named("1. FC Köln", ["FC Köln", "Alien"]) == "FC Köln"
    assert named("1. fc köln") == "1. FC Köln"  # the mark first, then the case
    assert named("'Answer: No'") == "Answer: No" and named("12 Monkeys") == "12 Monkeys"
    assert named("Answer: E.T..") == "E.T." and named("E.T") is None


@pytest.mark.parametrize(
    "message",
    [
        "",
        " \n",
        "Solaris",
        "Alien, Aliens",
        "I would choose Alien.",
        "Alien or M",
        "1. Alien\n2. Aliens\n3. M",
        "Alien\nM",
        "<think>\nAlien",
        "<think>Alien</think>",
        "Alien\n</think>\n",
        "1.",
        "Answer:",
        '""',
        "**",
    ],
)
def test_what_names_none_or_several_names_none(message):
    assert named(message) is None


def test_two_candidates_of_one_title_are_none_and_an_empty_title_is_never_named():
    assert named("1. Hamlet", ["Hamlet", "Hamlet", "Alien"]) is None
    assert read_answer("", ["", "Alien"]) == (None, False) and named('""', ["", "Alien"]) is None


def test_a_cut_line_is_not_read():
    """It may be the beginning of another title."""
    assert named("Alien", is_cut=True) is None and named("1. Alien", is_cut=True) is None
    assert read_answer("Alien\n\nThis fits the", TITLES, is_cut=True) == (TITLES.index("Alien"), True)
    assert named("<think>so</think>\nAlien\nbec", is_cut=True) == "Alien"
    assert named("<think>Alien\nAliens\nM", is_cut=True) is None


def test_numbers_are_read_as_titles_are():
    numbers = ["1", "12", "112"]
    assert [named(text, numbers) for text in ("12", "12.", "1. 112", "Answer: 1", "**12**", "13")] == [
        "12",
        "12",
        "112",
        "1",
        "12",
        None,
    ]


def test_reasoning_is_no_answer():
    assert without_reasoning("<think>a</think> b") == without_reasoning("a</THINK>b") == without_reasoning("b<think>c") == "b"
    assert without_reasoning("<think>a") == without_reasoning("a</think>\n") == ""


def test_no_message_takes_long_or_names_what_it_does_not_hold():
    """Whatever degenerate models write, of marks, labels, quotes and newlines."""
    pieces = ["- ", "> ", "1. ", "*", '"', ".", "Answer: ", "\n", "<think>", "</think>", "Alien", " ", "_", "(", "'"]
    draw = random.Random(0)
    for _ in range(300):
        message = "".join(draw.choices(pieces, k=60))
        assert named(message) in (None, "Alien") and (named(message) is None or "Alien" in message)
    for piece in pieces:
        assert named(piece * 3000 + "." * 3000) is None


def test_a_candidate_is_named_by_what_stands_in_the_list_too():
    titles, listed = ["Alien", "M", "Alien"], ["Alien (1979)", "M", "Alien (2024)"]

    def named_in(message):
        return read_answer(message, titles, listed=listed)

    assert named_in("M") == (1, False)  # the same text in both
    assert named_in("Alien (1979)") == (0, False) and named_in('"alien (2024)"') == (2, True)
    assert named_in("Alien") == (None, False) and named_in("Alien (1980)") == (None, False)
    assert named_in("M\nAlien (2024)") == (None, True)  # several are named
    assert named_in("Alien (2024)\n**Alien (2024)**") == (2, True)
