"""The page's JSON: the runs' own answers to the same candidates, bounds with clear words, and nothing from elsewhere."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from recbole_llara.checkpoint.run_folder import read_records
from recbole_llara.prompt.representation import SLOT_PARTS
from recbole_llara.serving.explain import explain
from recbole_llara.serving.http.app import create_app
from recbole_llara.serving.http.guard import MAX_BODY
from recbole_llara.serving.http.page import STATIC
from recbole_llara.serving.http.runs import CASES, check_same_items, load_runs
from recbole_llara.serving.http.service import MAX_CANDIDATES, MAX_HISTORY, MAX_QUERY
from recbole_llara.utils.errors import UserError

HISTORY = ["i3", "i4", "i7"]


def _ask(client, path="/api/recommend", **changes):
    return client.post(path, json={"history": HISTORY, **changes})


def test_the_runs_are_told(client, toy):
    told = client.get("/api/runs").json()
    assert [(run["name"], run["is_llm"]) for run in told["runs"]] == [("LLaRA", True), ("SASRec", False)]
    assert told["runs"][0]["rec_model"] == "SASRec"
    for run, folder in zip(told["runs"], toy.folders.values(), strict=True):
        correct = [case["correct"] for case in read_records(folder / CASES)]
        assert (run["n"], run["correct"]) == (12, sum(correct))
    assert (told["dataset"], told["candidate_num"]) == ("toy", 10)


def test_titles_are_searched(client):
    found = client.get("/items", params={"query": "TITLE 5"}).json()["items"]
    assert found[0] == {"item_id": "i5", "title": "Title 5 é"}
    assert {item["item_id"] for item in found} == {"i5", *(f"i{item}" for item in range(50, 60))}
    assert client.get("/items", params={"query": " "}).json()["items"] == []


def test_every_run_ranks_the_same_candidates(client, served_runs):
    told = _ask(client, k=4).json()
    candidates = told["candidates"]
    assert len(set(candidates)) == 10
    assert not set(candidates) & set(HISTORY)
    for run in served_runs:
        own = run.run.recommend([f"id:{item}" for item in HISTORY], 10, [f"id:{item}" for item in candidates])
        items = told["answers"][run.name]["items"]
        assert [item["item_id"] for item in items] == [item.item_id for item in own][:4]
        assert [item["score"] for item in items] == pytest.approx([item.score for item in own[:4]], abs=1e-4)
        assert sum(item["share"] for item in items) <= 1 + 1e-9
    assert _ask(client, candidates=candidates, k=4).json()["candidates"] == candidates
    assert set(_ask(client, runs=["SASRec"]).json()["answers"]) == {"SASRec"}


def test_the_prompt_holds_every_title_and_marks_every_embedding(client, served_runs, toy):
    told = _ask(client).json()
    assert told["answers"]["SASRec"]["prompt"] is None
    segments = told["answers"]["LLaRA"]["prompt"]["segments"]
    marks = [segment for segment in segments if "part" in segment]
    assert [mark["item_id"] for mark in marks] == [*HISTORY, *told["candidates"]]
    text = "".join(segment.get("text", "") for segment in segments)
    names = served_runs[0].run.names
    assert all(mark["title"] in text and mark["title"] == names.titles[names.find(f"id:{mark['item_id']}")] for mark in marks)
    assert toy.attack in text


def test_what_is_written_freely_is_told_valid_or_not(client, served_runs):
    answers = _ask(client, "/api/write").json()["answers"]
    assert answers["SASRec"] is None
    assert answers["LLaRA"]["valid"] == (answers["LLaRA"]["item_id"] is not None)
    assert answers["LLaRA"]["valid"] == (answers["LLaRA"]["title"] in served_runs[0].run.names.titles)


def test_every_run_tells_where_an_item_comes_from(client, served_runs):
    ranking = _ask(client, k=4).json()
    candidates = ranking["candidates"]
    for run in served_runs:
        item = ranking["answers"][run.name]["items"][2]["item_id"]
        answers = _ask(client, "/api/explain", candidates=candidates, item=item, runs=[run.name], k=2).json()["answers"]
        told = answers[run.name]
        asked = ([f"id:{one}" for one in HISTORY], f"id:{item}", [f"id:{one}" for one in candidates])
        own = explain(run.run, *asked).explained
        assert told["item_id"] == item and len(told["removals"]) == 2 and set(answers) == {run.name}
        found = next(one for one in told["candidates"] if one["item_id"] == item)
        assert (found["answer"]["rank"], found["unseen_rank"]) == (3, own.unseen_rank)
        assert found["answer"]["log_prob"] == pytest.approx(own.answer.log_prob, abs=1e-5)
        assert (found["llm"] is None) == (run.name == "SASRec")
    first = _ask(client, "/api/explain").json()["answers"]
    assert {name: answer["item_id"] for name, answer in first.items()} == {
        name: answer["items"][0]["item_id"] for name, answer in ranking["answers"].items()
    }
    refused = _ask(client, "/api/explain", item="i3")
    assert refused.status_code == 400 and "is not among the 10 candidates" in refused.json()["error"]
    assert _ask(client, item="i3").status_code == 422  # a question of another kind


def test_the_page_knows_every_mark():
    script = (STATIC / "ask.js").read_text(encoding="utf-8")
    assert all(re.search(rf"^  {part.value}: {{ short:", script, re.MULTILINE) for part in SLOT_PARTS)


def test_questions_at_once_are_one_call(served_runs, make_service, monkeypatch):
    calls = []
    for run in served_runs:
        whole = run.run.recommend_batch
        monkeypatch.setattr(run.run, "recommend_batch", lambda *args, whole=whole: calls.append(len(args[0])) or whole(*args))
    histories = [["i1"], ["i2", "i3"], HISTORY, ["nothing"], ["i9", "i8"]]
    together = _at_once(make_service(batch_wait=1.0, queue=len(histories)), [{"history": one} for one in histories])
    assert calls == [4, 4]  # one call of each run; the mistaken question never got there
    assert together[3].status_code == 400
    alone = TestClient(create_app(make_service()), base_url="http://localhost")
    for history, found in zip(histories, together, strict=True):
        if history != ["nothing"]:
            again = _ask(alone, history=history).json()
            assert again["candidates"] == found.json()["candidates"]
            for name, answer in again["answers"].items():
                scores = [item["score"] for item in answer["items"]]
                assert [item["score"] for item in found.json()["answers"][name]["items"]] == pytest.approx(scores, abs=1e-4)


def test_one_mistake_in_a_group_is_its_own(make_service):
    asked = [{"history": HISTORY, "candidates": ["i10", other]} for other in ("i11", "i10", "none", "i12")]
    answers = _at_once(make_service(batch_wait=1.0, queue=len(asked)), asked)
    assert [answer.status_code for answer in answers] == [200, 400, 400, 200]
    assert answers[3].json()["candidates"] == ["i10", "i12"]


def _at_once(service, asked):
    """Responses to the page's questions, all of them in one batch: the queue holds as many as there are."""
    with TestClient(create_app(service), base_url="http://localhost") as client, ThreadPoolExecutor(len(asked)) as visitors:
        return list(visitors.map(lambda one: client.post("/api/recommend", json=one), asked))


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"history": []}, 422, "history"),
        ({"history": ["i1"] * (MAX_HISTORY + 1)}, 422, f"history.*{MAX_HISTORY}"),
        ({"history": "i1"}, 422, "history.*list"),
        ({"history": ["i" * 1000]}, 422, "history.0"),
        ({"history": ["nothing"]}, 400, "no item is called 'id:nothing'"),
        ({"history": ["[PAD]"]}, 400, "no item"),
        ({"history": ["id:i1"]}, 400, "no item"),
        ({"k": 0}, 422, "k:"),
        ({"k": MAX_CANDIDATES + 1}, 422, "k:"),
        ({"candidates": ["i1"]}, 422, "candidates"),
        ({"candidates": ["i1", "i1"]}, 400, "twice"),
        ({"candidates": [f"i{item}" for item in range(MAX_CANDIDATES + 1)]}, 422, "candidates"),
        ({"runs": ["GPT"]}, 400, "found 'GPT', expected some of LLaRA, SASRec"),
        ({"runs": []}, 422, "runs"),
        ({"other": 1}, 422, "other"),
    ],
)
def test_questions_out_of_bounds_are_refused_in_words(client, changes, status, says):
    refused = _ask(client, **changes)
    assert refused.status_code == status, refused.text
    assert re.search(says, refused.json()["error"]), refused.text


def test_requests_out_of_bounds_are_refused_in_words(client):
    long = client.get("/items", params={"query": "a" * (MAX_QUERY + 1)})
    assert (long.status_code, long.json()["error"].split(":")[0]) == (422, "query")
    assert client.get("/items").status_code == 422
    body = b'{"history": ["' + b" " * MAX_BODY + b'"]}'
    json_type = {"Content-Type": "application/json"}
    assert client.post("/api/recommend", content=body, headers=json_type).status_code == 413
    assert client.post("/api/recommend", content=iter([body]), headers=json_type).status_code == 413  # of no announced length
    assert client.post("/api/recommend", content=b"{", headers=json_type).status_code == 422
    assert (
        client.post("/api/recommend", content=b'{"history": ["i1"]}', headers={"Content-Type": "text/plain"}).status_code == 422
    )
    assert client.get("/api/cases", params={"limit": 1000}).status_code == 422
    assert client.get("/api/cases", params={"offset": -1}).status_code == 422
    assert client.get("/api/cases/one").status_code == 422
    assert client.get("/api/cases/99999").status_code == 400
    assert client.get("/static/../page.py").status_code == 404
    for method in ("PUT", "DELETE", "PATCH", "POST"):
        assert client.request(method, "/api/cases").status_code == 405


def test_cases_are_found_and_opened(client):
    found = client.get("/api/cases", params={"right": "LLaRA", "wrong": "SASRec"}).json()
    assert all(case["correct"] == {"LLaRA": True, "SASRec": False} for case in found["cases"])
    everything = client.get("/api/cases").json()
    assert everything["count"] == everything["n"] == 12
    case = client.get(f"/api/cases/{everything['cases'][0]['row']}").json()
    assert len(case["candidates"]) == 10
    assert set(case["candidates"][0]["scores"]) == {"LLaRA", "SASRec"}


def test_pages_may_run_nothing_but_the_packages_files(client):
    for path in ("/", "/static/page.js", "/api/runs", "/nothing"):
        policy = client.get(path).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert client.get(path).headers["X-Content-Type-Options"] == "nosniff"
    assert client.get("/items", params={"query": "<img"}).headers["Content-Type"] == "application/json"


def test_the_page_loads_nothing_from_elsewhere_and_never_writes_markup():
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?! type=\"module\" src=\"/static/)|<style| style=| on\w+=", page)
    named = set(re.findall(r"/static/([\w.]+)", page))
    assert named <= {path.name for path in STATIC.iterdir()}


def test_runs_of_other_items_are_refused_by_name():
    def run(dataset, *ids):
        return SimpleNamespace(names=SimpleNamespace(ids=["[PAD]", *ids]), config={"dataset": dataset})

    paths = [Path("saved/one"), Path("saved/two")]
    check_same_items(paths, [run("a", "1", "2"), run("a", "2", "1")])
    with pytest.raises(UserError, match=r"saved/two \(dataset b\) and saved/one \(dataset a\) .* 1 differ, such as '3'"):
        check_same_items(paths, [run("a", "1", "2"), run("b", "1", "2", "3")])


def test_a_run_is_not_compared_with_itself(toy):
    folder = str(toy.folders["SASRec"])
    with pytest.raises(UserError, match="same run twice"):
        load_runs([folder, folder + "/"])
