"""Asking a server of vLLM's API: what it is sent, what goes wrong, and what is said of it."""

import json

import pytest
from engine_server import engine

import recbole_llara
from recbole_llara.model.engine_client import FACTS, FOLDER, Served, next_tokens, parts
from recbole_llara.serving.command import recommend_main
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import RunError, UserError


@pytest.fixture
def out(make_run, tmp_path):
    """An exported run."""
    return export(make_run(), tmp_path / "out", engine="vllm")


def served(out, **changes):
    return engine(out / FOLDER, Served.read(out / FOLDER).name, **changes)


def load(out, server, **keys):
    return recbole_llara.load(out, backend="vllm", backend_url=server.url, **keys)


def test_beginnings_of_answers():
    assert next_tokens([[5, 6, 9], [5, 7, 9], [8, 9]]) == {(): {5, 8}, (5,): {6, 7}, (5, 6): {9}, (5, 7): {9}, (8,): {9}}


@pytest.mark.parametrize(("answers", "length"), [(3, 2), (300, 2), (700, 3)])
def test_requests_keep_to_the_servers_limits(answers, length):
    asked = next_tokens([[*range(1000 * number, 1000 * number + length), 1] for number in range(1, answers + 1)])
    found = list(parts(asked))
    together = {}
    for part in found:
        assert len(part) <= 512 and len(set().union(*part.values())) <= 127
        for beginning, tokens in part.items():
            assert not tokens & together.get(beginning, set())
            together[beginning] = together.get(beginning, set()) | tokens
    assert together == asked


def test_a_row_is_one_request_and_only_so_many_run_at_once(out):
    with served(out) as server:
        run = load(out, server, backend_concurrency=2)
        server.seen.clear()
        server.busiest = 0
        run.recommend_batch([["i1"], ["i2"], ["i3"], ["i4"], ["i5"]], k=3)
        assert len(server.seen) == 5 and server.busiest <= 2
        told = Served.read(out / FOLDER)
        for body in server.seen:
            first, *more = sorted(body["prompt"], key=len)
            assert all(prompt[: len(first)] == first for prompt in more)  # what the prefix cache shares
            assert any(token >= told.vocabulary for token in first) and told.silent in body["logprob_token_ids"]
            assert body["max_tokens"] == 1 and body["temperature"] == 0


def test_busy_servers_are_asked_again(out):
    def busy(handler, number):
        if number % 2:
            handler.fail((429, 500, 503)[number % 3], "busy")
        return bool(number % 2)

    with served(out) as server:
        expected = load(out, server).recommend(["i1"], k=3)
    with served(out, fault=busy) as server:
        assert load(out, server, backend_concurrency=1).recommend(["i1"], k=3) == expected


def test_a_server_that_goes_away(out):
    with served(out) as server:
        run = load(out, server, backend_max_retries=1)
    with pytest.raises(RunError, match=r"backend_url: http://127.0.0.1:\d+/v1 cannot be reached after 2 tries"):
        run.recommend(["i1"])
    with pytest.raises(UserError, match="cannot be reached after 1 tries .*; see whether the server runs"):
        load(out, server, backend_max_retries=0)


def test_what_is_wrong_with_a_server_is_said_when_a_run_is_loaded(out, make_run, tmp_path):
    name = Served.read(out / FOLDER).name
    with engine(out / FOLDER, "another") as server:
        message = f"serves another, expected {name}: start it by vllm serve RUN/vllm --served-model-name={name}"
        with pytest.raises(UserError, match=message):
            load(out, server)
        load(out, server, backend_model="another")
    with served(out, max_model_len=20) as server, pytest.raises(UserError, match=r"holds 20 tokens, expected more than \d+"):
        load(out, server)
    with served(out, is_old=True) as server, pytest.raises(UserError, match="expected a server of vLLM 0.28 or later"):
        load(out, server)
    other = export(make_run(seed=1, epochs=3), tmp_path / "other", engine="vllm")
    with (
        engine(other / FOLDER, name) as server,
        pytest.raises(UserError, match="serves another LLM as .*differ from those of this run by"),
    ):
        load(out, server)
    for facts, message in (
        (other / FOLDER / FACTS, "holds the LLM of another run"),
        (None, "found no recbole_llara.json that can be read"),
    ):
        text = "{}" if facts is None else facts.read_text(encoding="utf-8")
        (out / FOLDER / FACTS).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            recbole_llara.load(out, backend="vllm")


def test_a_prompt_that_is_too_long_is_its_questions_own_mistake(out):
    with served(out) as server:
        run = load(out, server)
        server.max_model_len = 30
        with pytest.raises(
            UserError, match="the prompt is too long for .*maximum context length is 30 tokens.*--max-model-len"
        ):
            run.recommend(["i1", "i2"])


def test_keys_of_a_server(out, monkeypatch):
    with served(out, key="a-key-of-some-length") as server:
        with pytest.raises(UserError, match="backend_key_env: .* refuses the key of VLLM_API_KEY"):
            load(out, server)
        monkeypatch.setenv("OTHER", "a-key-of-some-lengtH")
        with pytest.raises(UserError, match="refuses the key of OTHER") as caught:
            load(out, server, backend_key_env="OTHER")
        error = caught.value
        while error is not None:  # the endpoint echoes what it was sent, and a traceback shows what hangs on an error
            assert "a-key-of" not in f"{error!r}{vars(error)}"
            error = error.__context__
        monkeypatch.setenv("VLLM_API_KEY", "a-key-of-some-length")
        assert load(out, server).recommend(["i1"])


def test_a_run_names_no_server(out):
    request = (out / "request.yaml").read_text(encoding="utf-8")
    (out / "request.yaml").write_text(
        request.replace("keys:\n", "keys:\n  backend: vllm\n  backend_url: http://stranger/v1\n"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="expected from the caller"):
        recbole_llara.load(out)


def test_the_command_line(out, capsys):
    with served(out) as server:
        words = [f"--run={out}", "--backend=vllm", f"--backend_url={server.url}", "--history", "i1", "i2", "--json"]
        assert recommend_main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["item_id"] for item in found] == [item.item_id for item in recbole_llara.load(out).recommend(["i1", "i2"])]
    assert recommend_main([f"--run={out}", "--backend=vlm", "--history", "i1"]) == 2
    assert "did you mean 'vllm'" in capsys.readouterr().err


def test_a_service_without_its_server_says_so_and_goes_on(out):
    from fastapi.testclient import TestClient

    from recbole_llara.serving.http.app import create_app
    from recbole_llara.serving.http.runs import load_runs
    from recbole_llara.serving.http.service import Service

    with served(out, fault=lambda handler, number: is_down and (handler.fail(400, "no"), True)[1]) as server:
        is_down = False
        service = Service(load_runs([str(out)], backend="vllm", backend_url=server.url))
        with TestClient(create_app(service), "http://127.0.0.1") as client:
            asked = {"history": ["i1"], "k": 3}
            expected = client.post("/recommend", json=asked)
            assert expected.status_code == 200
            is_down = True
            refused = client.post("/recommend", json=asked)
            assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
            assert refused.json() == {
                "error": "what reads the LLM does not answer; try again later"
            }  # its address is nobody's business
            is_down = False
            assert client.post("/recommend", json=asked).json() == expected.json()


def test_new_items_are_not_added_to_what_a_server_holds(out):
    with served(out) as server:
        run = load(out, server)
        with pytest.raises(UserError, match="items: with backend vllm the server holds the vectors"):
            run.add_items([{"item_id": "new", "title": "New"}])
