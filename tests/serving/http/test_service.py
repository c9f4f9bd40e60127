"""The service's routes behind a real socket: the run's own answers, and what happens to those that come too many, late or not at all."""

import json
import logging
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recbole_llara.serving.http.app import create_app
from recbole_llara.serving.http.command import TOKEN, main
from recbole_llara.serving.http.guard import MAX_BODY
from recbole_llara.serving.http.process import JsonLines
from recbole_llara.serving.http.service import MAX_CANDIDATES, MAX_HISTORY
from recbole_llara.serving.loaded import as_json

HISTORIES = [["i3", "i4", "i7"], ["Title 3 é", "title 9 É"], ["id:i5"], ["i1", "i2", "i8", "i9", "i10"]]


@pytest.fixture
def asking(make_service, listening):
    """Serves with limits; returns a client."""
    with ExitStack() as servers:

        def start(token=None, host="127.0.0.1", gateway=False, page=True, **limits):
            app = create_app(make_service(**limits), host, token, gateway, page)
            return servers.enter_context(httpx.Client(base_url=servers.enter_context(listening(app)), timeout=60))

        yield start


@pytest.fixture
def held(served_runs, monkeypatch):
    """The first run answers only when it may."""
    made = Held(served_runs[0].run, monkeypatch)
    yield made
    made.may_go.set()


class Held:
    """Keeps what a run is asked; nothing is answered before ``may_go`` is set."""

    def __init__(self, run, monkeypatch):
        self.may_go, self.is_inside, self.asked = threading.Event(), threading.Event(), []
        whole = run.recommend_batch

        def recommend_batch(histories, *others):
            self.asked.append(histories)
            self.is_inside.set()
            assert self.may_go.wait(60)
            return whole(histories, *others)

        monkeypatch.setattr(run, "recommend_batch", recommend_batch)


def _recommend(client, history=("i3", "i4"), **others):
    return client.post("/recommend", json={"history": list(history), **others})


def _metrics(client):
    """Value by name and the labels' values, these in the order of the labels' names."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def _until(holds):
    """Wait for something that is sure to come."""
    for _ in range(3000):
        if holds():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come")


def test_answers_are_the_runs_own(asking, served_runs):
    client = asking()
    run = served_runs[0].run
    for history in HISTORIES:
        assert _recommend(client, history, k=4).json() == {"recommendations": as_json(run.recommend(history, 4))}
    found = _recommend(client, ["i3"], retrieve_k=15, k=15).json()["recommendations"]
    assert [item["item_id"] for item in found] == [item.item_id for item in run.recommend(["i3"], 15, retrieve_k=15)]
    candidates = ["i20", "Title 21 é", "i22"]
    ranked = client.post("/rank", json={"history": ["i3"], "candidates": candidates}).json()
    assert ranked == {"recommendations": as_json(run.recommend(["i3"], 3, candidates))}
    assert len(client.post("/rank", json={"history": ["i3"], "candidates": candidates, "k": 2}).json()["recommendations"]) == 2
    found = client.get("/items", params={"query": "TITLE 5", "count": 2}).json()["items"]
    assert found == [run.names.told(item) for item in run.names.search("title 5", 2)]


def test_questions_at_once_get_their_own_answers(asking, served_runs):
    client = asking(batch_wait=1.0, queue=24, batch=24)
    run = served_runs[0].run
    histories = [[f"i{1 + (number * 7 + place) % 50}" for place in range(1 + number % 5)] for number in range(23)]
    with ThreadPoolExecutor(24) as visitors:
        found = list(visitors.map(lambda one: _recommend(client, one), [*histories, ["nothing"]]))
    assert [one.status_code for one in found] == [200] * 23 + [400]
    for history, answer in zip(histories, found[:-1], strict=True):
        own, told = run.recommend(history), answer.json()["recommendations"]
        assert [item["item_id"] for item in told] == [item.item_id for item in own]
        assert [item["score"] for item in told] == pytest.approx([item.score for item in own], abs=1e-4)
    values = _metrics(client)
    assert values["recbole_llara_batch_size_sum",] == 24 and values["recbole_llara_batch_size_count",] < 24


def test_beyond_the_queue_is_429_and_the_others_are_answered(asking, held):
    client = asking(queue=3)
    with ThreadPoolExecutor(3) as visitors:
        waiting = [visitors.submit(_recommend, client) for _ in range(3)]
        _until(lambda: _metrics(client)["recbole_llara_queue_length",] == 3)
        refused = [_recommend(client) for _ in range(4)]
        assert client.get("/items", params={"query": "t"}).status_code == client.get("/health").status_code == 200
        held.may_go.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
    for one in refused:
        assert (one.status_code, list(one.json())) == (429, ["error"]) and int(one.headers["Retry-After"]) >= 1
    values = _metrics(client)
    assert values["recbole_llara_rejected_total",] == 4
    assert values["recbole_llara_requests_total", "POST", "/recommend", "429"] == 4
    assert values["recbole_llara_requests_total", "POST", "/recommend", "200"] == 3
    assert values["recbole_llara_request_seconds_count", "/recommend"] == 7
    assert values["recbole_llara_queue_length",] == 0
    assert _recommend(client).status_code == 200


def test_what_takes_too_long_is_504_and_never_asked_if_it_had_not_begun(asking, held):
    client = asking(timeout=0.5, batch_wait=0)
    with ThreadPoolExecutor(1) as visitors:
        first = visitors.submit(_recommend, client, ["i3"])
        assert held.is_inside.wait(30)
        late = _recommend(client, ["i4"])
        assert (late.status_code, list(late.json())) == (504, ["error"]) and "0.5 s" in late.json()["error"]
        assert first.result().status_code == 504
    _until(lambda: client.get("/health/ready").status_code == 503)  # one batch takes longer than any request may
    assert client.get("/health/live").status_code == 200
    held.may_go.set()
    _until(lambda: client.get("/health/ready").status_code == 200)
    assert _recommend(client, ["i5"]).status_code == 200
    assert held.asked == [[["i3"]], [["i5"]]]


def test_a_client_that_left_is_not_asked_for(asking, held, caplog):
    caplog.set_level(logging.INFO, "recbole_llara.serving.http")
    client = asking(batch_wait=0)
    with ThreadPoolExecutor(1) as visitors:
        first = visitors.submit(_recommend, client, ["i3"])
        assert held.is_inside.wait(30)
        body = b'{"history": ["i4"]}'
        head = f"POST /recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        place = urlsplit(str(client.base_url))
        with socket.create_connection((place.hostname, place.port)) as leaving:
            leaving.sendall(head.encode() + body)
            _until(lambda: _metrics(client)["recbole_llara_queue_length",] == 2)
        _until(lambda: _metrics(client)["recbole_llara_queue_length",] == 1)
        held.may_go.set()
        assert first.result().status_code == 200
    assert _recommend(client, ["i5"]).status_code == 200
    assert held.asked == [[["i3"]], [["i5"]]]
    assert 499 in [record.told["status"] for record in caplog.records if record.message == "request"]


def test_a_token_is_asked_for(asking):
    client = asking(token="s3cret")
    everything = ("/items?query=a", "/metrics", "/openapi.json", "/api/runs", "/api/cases", "/nothing")
    for path in everything:
        refused = client.get(path)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert list(refused.json()) == ["error"]
    assert _recommend(client).status_code == 401
    for given in ("Bearer s3cre", "Bearer s3crets", "Bearer", "Basic s3cret", "s3cret", b"Bearer s\xe9cret"):
        assert client.get("/metrics", headers={"Authorization": given}).status_code == 401
    for path in ("/", "/static/page.js", "/health", "/health/live", "/health/ready"):
        assert client.get(path).status_code == 200
    client.headers["Authorization"] = "Bearer s3cret"
    assert [client.get(path).status_code for path in everything] == [200] * 5 + [404]
    assert _recommend(client).status_code == 200
    # Nobody who lacks the token is harmed by a name that points here.
    assert client.get("/metrics", headers={"Host": "shop.example"}).status_code == 200


def test_only_loopbacks_names_are_answered_without_a_token(asking):
    client = asking()
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "localhost:1:2", ""):
        refused = client.get("/health", headers={"Host": host})
        assert (refused.status_code, list(refused.json())) == (400, ["error"])
    for given in ({"host": "0.0.0.0"}, {"gateway": True}):
        assert asking(**given).get("/health", headers={"Host": "shop.example"}).status_code == 200


def test_other_machines_are_let_in_by_a_token_alone(monkeypatch, capsys, tmp_path):
    def said(*words):
        assert main([f"--run={tmp_path}", "--port=99999", *words]) == 2
        return capsys.readouterr().err

    monkeypatch.delenv(TOKEN, raising=False)
    is_let_in = "cannot be listened to"
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert TOKEN in said(f"--host={host}") and "--behind_gateway" in said(f"--host={host}")
    assert is_let_in in said() and is_let_in in said("--host=0.0.0.0", "--behind_gateway")
    monkeypatch.setenv(TOKEN, "s3cret")
    assert is_let_in in said("--host=0.0.0.0")
    for bad in ("", "two words", "schlüssel"):
        monkeypatch.setenv(TOKEN, bad)
        assert "visible ASCII" in said()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port=99999"], "cannot be listened to"),
        (["--workers=0"], "workers: found 0"),
        (["--queue=0"], "queue: found 0"),
        (["--batch=0"], "batch: found 0"),
        (["--timeout=0"], "timeout: found 0"),
        (["--timeout=nan"], "timeout: found nan"),
        (["--batch_wait=-1"], "batch_wait: found -1"),
        (["--no_page", "--compare", "saved/other"], "compare"),
        (["stray"], "expected --key=value"),
    ],
)
def test_the_command_line_says_what_is_wrong(words, says, tmp_path, capsys):
    assert main([f"--run={tmp_path}", "--port=0", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([f"--run={tmp_path}", f"--port={port}"]) == 2
    assert f"127.0.0.1:{port} cannot be listened to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/recommend", {}, 422, "history"),
        ("/recommend", {"history": []}, 422, "history"),
        ("/recommend", {"history": ["i1"] * (MAX_HISTORY + 1)}, 422, f"history.*{MAX_HISTORY}"),
        ("/recommend", {"history": "i1"}, 422, "history.*list"),
        ("/recommend", {"history": [True]}, 422, "history.0"),
        ("/recommend", {"history": ["i1"], "k": 0}, 422, "k:"),
        ("/recommend", {"history": ["i1"], "k": "many"}, 422, "k:"),
        ("/recommend", {"history": ["i1"], "kk": 1}, 422, "kk"),
        ("/recommend", {"history": ["i1"], "candidates": ["i2", "i3"]}, 422, "candidates"),
        ("/recommend", {"history": ["nothing"]}, 400, "no item is called 'nothing'"),
        ("/recommend", {"history": [7]}, 400, "no item is called '7'"),  # a number is an id
        ("/recommend", {"history": ["i1"], "retrieve_k": 99}, 400, "retrieve_k"),
        ("/rank", {"history": ["i1"]}, 422, "candidates"),
        ("/rank", {"history": ["i1"], "candidates": ["i2"]}, 422, "candidates"),
        ("/rank", {"history": ["i1"], "candidates": ["i2", "i2"]}, 400, "twice"),
        ("/rank", {"history": ["i1"], "candidates": [f"i{item}" for item in range(MAX_CANDIDATES + 1)]}, 422, "candidates"),
    ],
)
def test_questions_out_of_bounds_are_refused_in_words(client, path, body, status, says):
    refused = client.post(path, json=body)
    assert (refused.status_code, list(refused.json())) == (status, ["error"])
    assert re.search(says, refused.json()["error"]), refused.text


def test_every_error_has_one_shape(client, service, monkeypatch, caplog):
    json_type = {"Content-Type": "application/json"}
    big = b'{"history": ["' + b" " * MAX_BODY + b'"]}'
    refused = [
        client.get("/nothing"),
        client.get("/recommend"),
        client.get("/static/nothing.js"),
        client.post("/recommend", content=b"{", headers=json_type),
        client.post("/recommend", content=big, headers=json_type),
        client.post("/recommend", content=iter([big]), headers=json_type),  # of no announced length
        client.post("/recommend", content=b'{"history": ["i1"]}', headers={"Content-Type": "text/plain"}),
        client.get("/items"),
    ]
    assert [one.status_code for one in refused] == [404, 405, 404, 422, 413, 413, 422, 422]

    def broken(*_):
        raise KeyError("Title 3 é")

    monkeypatch.setattr(service.first, "recommend_batch", broken)
    refused.append(_recommend(client))
    assert refused[-1].status_code == 500 and refused[-1].headers["X-Request-ID"] in refused[-1].json()["error"]
    service.queue.close()
    refused += [_recommend(client), client.get("/health")]
    assert [one.status_code for one in refused[-2:]] == [503, 503]
    for one in refused:
        assert list(one.json()) == ["error"] and one.headers["Content-Security-Policy"]
    written = [JsonLines().format(record) for record in caplog.records if record.message == "failed"]
    assert len(written) == 1 and "KeyError" in written[0] and "broken" in written[0] and "Title" not in written[0]


def test_a_line_of_the_log_tells_of_a_request_but_not_of_the_user(client, served_runs, caplog):
    caplog.set_level(logging.INFO, "recbole_llara.serving.http")
    assert _recommend(client, ["Title 3 é", "i4"]).headers["X-Request-ID"]
    client.post("/rank", json={"history": ["Title 3 é"], "candidates": ["i20", "i21"]})
    client.get("/items", params={"query": "Title 3"})
    client.get("/Title 3")
    _recommend(client, ["Title none"])
    client.get("/health", headers={"X-Request-ID": "mine-1"})
    client.get("/health", headers={"X-Request-ID": 'no"t mine'})
    client.request("TITLE", "/health")
    lines = [JsonLines().format(record) for record in caplog.records if record.message == "request"]
    assert not re.search(r"[Tt]itle|TITLE|\bi\d+\b", "".join(lines))
    told = [json.loads(line) for line in lines]
    assert [(one["method"], one["path"], one["status"], one["batch"]) for one in told] == [
        ("POST", "/recommend", 200, 1),
        ("POST", "/rank", 200, 1),
        ("GET", "/items", 200, None),
        ("GET", "none", 404, None),
        ("POST", "/recommend", 400, 1),
        ("GET", "/health", 200, None),
        ("GET", "/health", 200, None),
        ("other", "/health", 405, None),
    ]
    assert all(one["ms"] >= 0 and one["level"] == "info" and one["time"].endswith("+00:00") for one in told)
    assert told[5]["request_id"] == "mine-1" and re.fullmatch(r"[0-9a-f]{32}", told[6]["request_id"])


def test_the_metrics_name_the_run(client, toy):
    values = _metrics(client)
    assert values["recbole_llara_run_info", "LLaRA", toy.folders["LLaRA"].name, "LLaRA"] == 1
    assert client.get("/metrics").headers["Content-Type"].startswith("text/plain; version=")


def test_openapi_tells_the_routes_and_their_limits(client, make_service):
    told = client.get("/openapi.json").json()
    assert set(told["paths"]) == {"/recommend", "/rank", "/items", "/health", "/health/live", "/health/ready", "/metrics"}
    schemas = told["components"]["schemas"]
    assert schemas["AskedAnything"]["properties"]["history"]["maxItems"] == MAX_HISTORY
    for name in ("400", "401", "413", "422", "429", "503", "504"):
        answer = told["paths"]["/recommend"]["post"]["responses"][name]
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    assert "securitySchemes" not in told["components"]
    assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_without_the_page_no_test_row_is_shown(asking):
    client = asking(page=False)
    for path in ("/", "/static/page.js", "/api/runs", "/api/cases", "/api/cases/0"):
        assert client.get(path).status_code == 404
    assert _recommend(client).status_code == 200
