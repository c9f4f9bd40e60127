"""Items that change while a service runs: every worker has them, a restart brings them back, and who cannot be told says so."""

import threading

import pytest
from fastapi.testclient import TestClient

from recbole_llara.serving.http.app import create_app
from recbole_llara.serving.http.service import MAX_TOLD

HISTORY = ["i3", "i4", "i7"]
DUNE = {"item_id": "dune", "title": "Dune"}


def client_of(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1:8000")


def ranked(client, candidates=("dune", "i1", "i2")):
    answer = client.post("/rank", json={"history": HISTORY, "candidates": list(candidates)})
    return (
        {one["item_id"]: one["score"] for one in answer.json()["recommendations"]}
        if answer.is_success
        else answer.json()["error"]
    )


def near(scores):
    """The same scores but for roundings: a text is read beside others, one worker may be told of more at a time than another."""
    return pytest.approx(scores, abs=1e-4)


def test_what_one_worker_is_told_the_others_and_a_restart_have(make_changing, tmp_path):
    """Two services stand for two workers over one file, a third for the service started again."""
    path = tmp_path / "more.item"
    with client_of(make_changing(path, is_alone=False)) as one, client_of(make_changing(path, is_alone=False)) as other:
        assert "no item is called" in ranked(other)
        told = one.post("/items", json={"items": [DUNE, {"item_id": "i5", "title": "Five"}]})
        assert told.json() == {"added": 1, "renamed": 1, "removed": 0, "returned": 0, "kept": True}
        assert ranked(one) == near(ranked(other)) and "dune" in ranked(other)
        assert other.get("/items", params={"query": "five"}).json() == {"items": [{"item_id": "i5", "title": "Five"}]}
        assert other.post("/items", json={"items": [{"item_id": "arrakis", "title": "Arrakis"}]}).json()["added"] == 1
        both = ["dune", "arrakis", "i5"]
        assert ranked(one, both) == near(ranked(other, both)) and len(ranked(one, both)) == 3
        assert one.post("/items", json={"items": [{"item_id": "dune", "removed": True}]}).json()["removed"] == 1
        assert "was removed" in ranked(other)
        with client_of(make_changing(path)) as again:
            assert ranked(again, both[1:]) == near(ranked(one, both[1:])) and "was removed" in ranked(again)


def test_without_a_file_a_change_is_said_to_go(make_changing):
    with client_of(make_changing()) as client:
        assert client.post("/items", json={"items": [DUNE]}).json() == {
            "added": 1, "renamed": 0, "removed": 0, "returned": 0, "kept": False,
        }  # fmt: skip
        found = client.post("/recommend", json={"history": HISTORY, "k": 10, "retrieve_k": 10}).json()["recommendations"]
        assert "Dune" in [item["title"] for item in found]
    with client_of(make_changing()) as again:
        assert "no item is called" in ranked(again)


@pytest.mark.parametrize(
    ("given", "status", "expected"),
    [
        ({"is_alone": False}, 409, "start the service with --items=FILE"),
        ({"names": ("LLaRA", "SASRec")}, 409, "leave it out of --compare"),
    ],
)
def test_where_others_would_not_know_of_it_a_change_is_refused(make_changing, given, status, expected):
    with client_of(make_changing(**given)) as client:
        answer = client.post("/items", json={"items": [DUNE]})
        assert answer.status_code == status and expected in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"items": [{"item_id": "dune"}]}, 400, "is not known and has no title"),
        ({"items": [{**DUNE, "yaer": "2021"}]}, 400, "found the entry 'yaer'"),
        ({"items": [DUNE, DUNE]}, 400, "found item 'dune' twice"),
        ({"items": []}, 422, "items"),
        ({"items": [DUNE] * (MAX_TOLD + 1)}, 422, "items"),
        ({"items": [{"title": "Dune"}]}, 422, "item_id"),
        ({"items": [{**DUNE, "removed": "maybe"}]}, 422, "removed"),
    ],
)
def test_what_is_wrong_is_said(make_changing, body, status, expected):
    with client_of(make_changing()) as client:
        answer = client.post("/items", json=body)
        assert answer.status_code == status and expected in answer.json()["error"]
        assert "no item is called" in ranked(client)


def test_changes_and_questions_at_once(make_changing, tmp_path):
    """Every question is answered from a whole state: by the items before a change or after it."""
    with client_of(make_changing(tmp_path / "more.item")) as client:
        wrong, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                answer = client.post("/recommend", json={"history": HISTORY, "k": 5})
                if not answer.is_success or len(answer.json()["recommendations"]) != 5:
                    wrong.append(answer.text)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for number in range(20):
                told = {"items": [{"item_id": f"n{number}", "title": f"Tale {number}"}]}
                assert client.post("/items", json=told).json()["added"] == 1
        finally:
            stop.set()
            thread.join()
        assert not wrong


def test_a_file_that_cannot_be_read_stops_the_start(make_changing, tmp_path):
    (tmp_path / "more.item").write_text("title:token_seq\nDune\n", encoding="utf-8")
    with pytest.raises(Exception, match=r"more.item has the columns title, expected 'item_id'"):
        make_changing(tmp_path / "more.item")
