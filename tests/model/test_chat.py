"""ChatLLM against endpoints that behave, that misbehave, and that are gone; and what is paid for twice: nothing."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from chat_server import first_candidate, obedient, serving, slow
from synthetic_data import write_toy_dataset

from recbole_llara.errors import UserError
from recbole_llara.model.chat import undress
from recbole_llara.model.chat_server import served
from recbole_llara.quick_start import run_recbole_llara

ROWS = 12
ROOT = Path(__file__).parents[2]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The keys of a run, less the endpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    return {
        **write_toy_dataset(tmp_path),
        "max_eval_rows": ROWS,
        "api_model": "toy-1",
        "eval_batch_size": 5,
        "api_max_retries": 3,
    }


def _run(keys):
    paths = run_recbole_llara("ChatLLM", "toy", config_dict=keys)
    result = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))
    cases = [json.loads(line) for line in Path(paths["cases_file"]).read_text(encoding="utf-8").splitlines()]
    return result, cases


def test_every_row_is_asked_once_and_the_answer_is_matched(toy):
    with serving(obedient) as server:
        prices = {"api_price_prompt": 10.0, "api_price_completion": 20.0}
        result, cases = _run({**toy, **prices, "api_base": server.api_base})
    assert len(server.seen) == ROWS == result["chat"]["requests_of_this_run"] and len(cases) == ROWS
    for case in cases:
        assert case["answer_text"] == case["answer_title"] == case["candidate_titles"][0]
    body = server.seen[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("toy-1", 0, 64)
    assert (result["model"], result["llm"], result["decoding"], result["rec_model"]) == ("ChatLLM", "toy-1", "chat", None)
    assert result["metrics"]["test"]["validratio"] == 1.0 and not any("@5" in name for name in result["metrics"]["test"])
    assert (result["chat"]["prompt_tokens"], result["chat"]["completion_tokens"]) == (3 * ROWS, 2 * ROWS)
    assert result["chat"]["cost"] == pytest.approx(ROWS * (3 * 10 + 2 * 20) / 1e6)
    assert "secret-of-the-test" not in "".join(
        path.read_text(errors="ignore") for path in Path(toy["checkpoint_dir"]).rglob("*") if path.is_file()
    )


def test_it_asks_the_rows_and_candidates_of_every_other_model(toy):
    with serving(obedient) as server:
        _, cases = _run({**toy, "api_base": server.api_base})
    stock = run_recbole_llara(
        "Popularity", "toy", config_dict={key: value for key, value in toy.items() if not key.startswith("api_")}
    )
    others = [json.loads(line) for line in Path(stock["cases_file"]).read_text(encoding="utf-8").splitlines()]
    assert [case["candidates"] for case in cases] == [case["candidates"] for case in others]
    for case, body in zip(sorted(cases, key=lambda c: c["row"]), _by_row(server.seen, cases), strict=True):
        assert ", ".join(case["history_titles"]) in body and ", ".join(case["candidate_titles"]) in body


def _by_row(bodies, cases):
    """The prompts in the order of the rows, found by their candidates."""
    prompts = [body["messages"][-1]["content"] for body in bodies]
    return [
        next(prompt for prompt in prompts if ", ".join(case["candidate_titles"]) in prompt)
        for case in sorted(cases, key=lambda case: case["row"])
    ]


def test_indices_are_asked_for_and_matched(toy):
    with serving(obedient) as server:
        result, cases = _run({**toy, "api_base": server.api_base, "representation": "numerical"})
    assert result["metrics"]["test"]["validratio"] == 1.0
    assert all(case["answer_text"].isdecimal() and case["answer"] == case["candidates"][0] for case in cases)


def test_a_second_run_pays_nothing_and_another_request_does(toy):
    with serving(obedient) as server:
        first, cases = _run({**toy, "api_base": server.api_base})
        second, again = _run({**toy, "api_base": server.api_base})
        assert len(server.seen) == ROWS and second["chat"]["requests_of_this_run"] == 0
        assert cases == again and first["metrics"] == second["metrics"]
        assert second["chat"]["prompt_tokens"] == first["chat"]["prompt_tokens"]
        _run({**toy, "api_base": server.api_base, "api_options": {"temperature": 0.5}})
        assert len(server.seen) == 2 * ROWS


def test_interrupted_half_way_it_goes_on_without_repeating_a_request(toy, tmp_path):
    """A real process, a real Ctrl-C, and a second run."""
    keys = {**toy, "api_concurrency": 2, "eval_batch_size": ROWS}
    with serving(slow(0.3)) as server:
        words = [f"--{key}={json.dumps(value)}" for key, value in {**keys, "api_base": server.api_base}.items()]
        command = [sys.executable, str(ROOT / "run_recbole_llara.py"), "--model=ChatLLM", "--dataset=toy", *words]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            # Shells start background jobs, these tests perhaps, deaf to Ctrl-C, and children inherit that.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while len(server.seen) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in errors, errors
        asked = len(server.answered)
        assert 3 <= asked < ROWS
        result, cases = _run({**keys, "api_base": server.api_base})
        assert max(Counter(json.dumps(body) for body in server.seen).values()) == 1
        assert len(server.seen) == ROWS and result["chat"]["requests_of_this_run"] == ROWS - asked
    with serving(obedient) as server:
        whole, others = _run({**keys, "api_base": server.api_base})
    assert whole["metrics"] == result["metrics"] and cases == others


def test_a_cap_on_requests_stops_and_keeps_what_was_answered(toy):
    with serving(obedient) as server:
        keys = {**toy, "api_base": server.api_base}
        with pytest.raises(UserError, match="api_max_requests: 7 requests were made and rows are left"):
            _run({**keys, "api_max_requests": 7})
        assert len(server.seen) == 7
        result, _ = _run({**keys, "api_max_requests": 7})
        assert len(server.seen) == ROWS and result["n"] == ROWS


def test_passing_faults_are_tried_again(toy):
    """429, 500, a cut connection and no answer in time, each once."""
    faults = {
        1: lambda handler, body: handler.fail(429),
        3: lambda handler, body: handler.fail(500),
        5: lambda handler, body: handler.cut(),
        7: lambda handler, body: time.sleep(1.0),
    }

    def reply(handler, number, body):
        if number in faults:
            faults[number](handler, body)
        else:
            obedient(handler, number, body)

    with serving(reply) as server:
        result, cases = _run({**toy, "api_base": server.api_base, "api_timeout": 0.4, "api_concurrency": 1})
    assert len(server.answered) == ROWS and len(server.seen) == ROWS + len(faults)
    assert result["chat"]["requests_of_this_run"] == ROWS and all(case["valid"] for case in cases)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda handler, number, body: handler.fail(500), "api_base: .* answers 500 for model toy-1"),
        (lambda handler, number, body: handler.fail(404), "api_base: .* answers 404 for model toy-1"),
        (lambda handler, number, body: handler.fail(401), "api_key_env: .* refuses the key"),
        (lambda handler, number, body: handler.cut(), "api_base: .* cannot be reached after 2 tries"),
        (lambda handler, number, body: time.sleep(1.0), "api_timeout: no answer from .* within 0.2 s, 2 times"),
    ],
)
def test_lasting_faults_end_the_run_and_lose_nothing(toy, reply, message):
    def after_three(handler, number, body):
        (obedient if number <= 3 else reply)(handler, number, body)

    keys = {**toy, "api_max_retries": 1, "api_timeout": 0.2, "api_concurrency": 1}
    with serving(after_three) as server:
        with pytest.raises(UserError, match=message):
            _run({**keys, "api_base": server.api_base})
        server.reply = obedient
        result, _ = _run({**keys, "api_base": server.api_base})
    assert result["chat"]["requests_of_this_run"] == ROWS - 3


def test_an_endpoint_that_is_down(toy):
    with pytest.raises(UserError, match="api_base: http://127.0.0.1:9/v1 cannot be reached"):
        _run({**toy, "api_base": "http://127.0.0.1:9/v1", "api_max_retries": 0})


def test_nonsense_is_an_invalid_answer_and_dress_is_not(toy):
    """Empty, two titles, and a foreign one are invalid; quotes and a full stop hide nothing."""
    texts = [None, "", "Title 999 é", "I cannot help with that.", "“{}”.", "**{}**", '"{}"']

    def reply(handler, number, body):
        text = texts[(number - 1) % len(texts)]
        handler.answer(body, text.format(first_candidate(body)) if text else text)

    with serving(reply) as server:
        result, cases = _run({**toy, "api_base": server.api_base, "api_concurrency": 1, "max_eval_rows": len(texts)})
    assert sum(case["valid"] for case in cases) == 3 == result["valid_answers"]
    assert all(case["answer"] == case["candidates"][0] for case in cases if case["valid"])
    assert not any(case["correct"] for case in cases if not case["valid"])
    assert undress("“Dr. Strangelove”.") == "Dr. Strangelove"


@pytest.mark.parametrize(
    ("content", "headers"), [("<html>", {}), ("<html>", {"Content-Type": "text/html"}), ("{}", {}), ('{"choices": []}', {})]
)
def test_an_answer_that_is_no_completion_is_an_error(toy, content, headers):
    with (
        serving(lambda handler, number, body: handler.send(200, content, headers)) as server,
        pytest.raises(UserError, match="api_base: .* answers what is no chat completion"),
    ):
        _run({**toy, "api_base": server.api_base, "api_max_retries": 0})


def test_damaged_answers_are_asked_for_again_and_a_damaged_cache_is_named(toy, caplog):
    path = Path(toy["checkpoint_dir"]) / "chat" / "answers.sqlite"
    with serving(obedient) as server:
        keys = {**toy, "api_base": server.api_base}
        first, cases = _run(keys)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE answers SET answer = substr(answer, 3) WHERE rowid <= 2")
        second, again = _run(keys)
        assert len(server.seen) == ROWS + 2 and (cases, first["metrics"]) == (again, second["metrics"])
        assert caplog.text.count("A damaged answer in") == 2
        path.write_bytes(b"no database" * 99)
        with pytest.raises(
            UserError, match=r"answers.sqlite cannot be used as the cache of answers \(file is not a database\)"
        ):
            _run(keys)
        assert path.read_bytes() == b"no database" * 99


def test_what_cannot_work_is_refused_before_anything_is_asked(toy, monkeypatch):
    with pytest.raises(UserError, match="representation: found hybrid, expected one of numerical, textual"):
        _run({**toy, "representation": "hybrid"})
    with pytest.raises(UserError, match="epochs: found 1, expected 0"):
        _run({**toy, "epochs": 1})
    with pytest.raises(UserError, match="unknown key 'api_key'"):
        _run({**toy, "api_key": "sk-1"})
    with pytest.raises(UserError, match="environment variable OTHER_KEY holds no key"):
        _run({**toy, "api_key_env": "OTHER_KEY"})
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install recbole-llara\[chat\]"):
        _run(toy)
    assert not Path(toy["checkpoint_dir"]).exists()


def test_a_real_server_over_the_tiny_llama(toy):
    """``transformers serve`` answers as its model does."""
    with served("tiny") as server:
        keys = {"api_base": server.api_base, "api_model": server.model, "max_eval_rows": 6}
        result, cases = _run({**toy, **keys, "chat_instruction": "", "api_options": {"max_tokens": 8}})
    assert result["n"] == 6 and result["chat"]["prompt_tokens"] > 6 * 20 and result["chat"]["completion_tokens"] >= 6
    assert all(isinstance(case["answer_text"], str) for case in cases)
