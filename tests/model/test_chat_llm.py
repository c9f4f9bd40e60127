"""ChatLLM against endpoints that behave, that misbehave, and that are gone; and what is paid for twice: nothing."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from chat_server import MANNERS, POLICY, first_candidate, newest, obedient, refusing, serving, slow
from synthetic_data import GENRES, add_item_fields, write_toy_dataset

from recbole_llara.model.chat_llm import served
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import RunError, UserError

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
    assert len(server.seen) == ROWS == result["chat"]["paid"]["requests"] and len(cases) == ROWS
    for case in cases:
        assert case["answer_text"] == case["answer_title"] == case["candidate_titles"][0]
    body = server.seen[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("toy-1", 0, 64)
    assert (result["model"], result["llm"], result["decoding"], result["rec_model"]) == ("ChatLLM", "toy-1", "chat", None)
    assert result["metrics"]["test"]["validratio"] == 1.0 and not any("@5" in name for name in result["metrics"]["test"])
    cost = pytest.approx(ROWS * (3 * 10 + 2 * 20) / 1e6)
    assert result["chat"]["paid"] == {
        "requests": ROWS,
        "prompt_tokens": 3 * ROWS,
        "completion_tokens": 2 * ROWS,
        "cost": cost,
    }
    assert result["chat"]["cached"] == {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
    assert result["answers"]["exact"] == ROWS == sum(result["answers"].values())
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


def test_fields_stand_in_the_prompt_and_a_candidate_is_named_with_them_or_without(toy, tmp_path):
    def copying(handler, number, body):
        listed = body["messages"][-1]["content"].split("items:")[1]
        title, told = re.match(r" (Title \d+ é)( \([^)]*\)|)", listed).groups()
        handler.answer(body, [title, f"{title}{told}", f"**{title.lower()}{told}**."][number % 3])

    add_item_fields(tmp_path)
    asked = {**toy, "item_fields": ["release_year", "class", "popularity"]}
    with serving(copying) as server:
        result, cases = _run({**asked, "api_base": server.api_base})
        bodies = [body["messages"][-1]["content"] for body in server.seen]
    assert result["item_fields"] == asked["item_fields"] and len(cases) == ROWS
    assert result["answers"]["exact"] == 2 * ROWS / 3 and result["answers"]["unwrapped"] == ROWS / 3
    assert all(case["answer"] == case["candidates"][0] for case in cases)
    for body in bodies:
        items = re.findall(r"Title (\d+) é( \([^)]*\))?", body)
        assert len(items) > 10
        for item, told in items:
            year, genre = f"{1990 + int(item) % 9}" if int(item) % 5 else "", GENRES[int(item) % 4]
            known = ", ".join(filter(None, (year, genre)))
            assert re.fullmatch(rf"( \({known}(, )?((well )?known|(very )?popular)?\))?", told) and known in told


def test_a_second_run_pays_nothing_and_another_request_does(toy):
    with serving(obedient) as server:
        prices = {"api_price_prompt": 10.0, "api_price_completion": 20.0}
        first, cases = _run({**toy, **prices, "api_base": server.api_base})
        second, again = _run({**toy, **prices, "api_base": server.api_base})
        assert len(server.seen) == ROWS
        assert cases == again and first["metrics"] == second["metrics"]
        assert second["chat"]["cached"] == first["chat"]["paid"] and second["chat"]["paid"] == first["chat"]["cached"]
        assert second["chat"]["paid"]["cost"] == 0.0
        _run({**toy, "api_base": server.api_base, "api_options": {"temperature": 0.5}})
        assert len(server.seen) == 2 * ROWS


@pytest.mark.slow
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
        assert len(server.seen) == ROWS and result["chat"]["paid"]["requests"] == ROWS - asked
        assert result["chat"]["cached"]["requests"] == asked
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
    assert result["chat"]["paid"]["requests"] == ROWS and all(case["valid"] for case in cases)


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
    assert result["chat"]["paid"]["requests"] == ROWS - 3


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
    assert result["answers"] == {**dict.fromkeys(result["answers"], 0), "unwrapped": 3, "unmatched": 2, "empty": 2}
    assert [case["outcome"] for case in cases if not case["valid"]].count("empty") == 2


@pytest.mark.parametrize(
    ("content", "headers"), [("<html>", {}), ("<html>", {"Content-Type": "text/html"}), ("{}", {}), ('{"choices": []}', {})]
)
def test_an_answer_that_is_no_completion_is_an_error(toy, content, headers):
    with (
        serving(lambda handler, number, body: handler.send(200, content, headers)) as server,
        pytest.raises(UserError, match="api_base: .* answers what is no chat completion"),
    ):
        _run({**toy, "api_base": server.api_base, "api_max_retries": 0})


@pytest.mark.parametrize("manner", MANNERS)
def test_every_manner_of_answering_is_told_apart(toy, manner, caplog):
    """The first candidate is said in each, or nothing is; paid for are all, and only what says something is kept."""
    reply, expected = MANNERS[manner]
    with serving(reply) as server:
        keys = {**toy, "api_base": server.api_base}
        result, cases = _run(keys)
        is_valid, says_something = expected in ("exact", "unwrapped"), any(case["answer_text"] for case in cases)
        assert result["answers"] == {**dict.fromkeys(result["answers"], 0), expected: ROWS}
        assert {case["outcome"] for case in cases} == {expected}
        assert all((case["answer"] == case["candidates"][0]) == case["valid"] == is_valid for case in cases)
        assert result["metrics"]["test"]["validratio"] == is_valid and result["n"] == ROWS == result["chat"]["paid"]["requests"]
        assert (result["chat"]["paid"]["prompt_tokens"], result["chat"]["paid"]["completion_tokens"]) == (3 * ROWS, 2 * ROWS)
        again, others = _run(keys)
    is_kept = says_something and manner not in ("thinks too long", "refused in a field")
    assert again["chat"]["paid"]["requests"] == (0 if is_kept else ROWS)
    assert (others, again["answers"], again["metrics"]) == (cases, result["answers"], result["metrics"])
    assert ("raise max_tokens" in caplog.text) == (expected == "cut" and not is_kept)


def test_refused_prompts_are_counted_and_the_others_are_answered(toy, caplog):
    """Refused by a policy, as too long, and by a fault of the server's own, each a prompt or two among others."""
    kinds = {
        "refused": {"status": 400, **POLICY},
        "too_long": {"status": 400, "message": "This model's maximum context length is 128 tokens.", "param": "messages"},
        "failed": {"status": 500},
    }
    with serving(obedient) as server:
        keys = {**toy, "api_base": server.api_base, "api_max_retries": 1, "eval_batch_size": 3}
        whole, cases = _run({**keys, "checkpoint_dir": toy["checkpoint_dir"] + "-whole"})
        prompts = [", ".join(case["candidate_titles"]) for case in cases]
        wanted = dict(zip((prompts[number] for number in (4, 6, 9)), kinds, strict=True))

        def reply(handler, number, body):
            text = body["messages"][-1]["content"]
            fault = next((kind for prompt, kind in wanted.items() if prompt in text), None)
            if fault is None:
                obedient(handler, number, body)
            else:
                handler.fail(**kinds[fault])

        server.reply = reply
        result, found = _run(keys)
        assert result["answers"] == {**dict.fromkeys(result["answers"], 0), "exact": ROWS - 3, **dict.fromkeys(kinds, 1)}
        assert [case["outcome"] for case in found if not case["valid"]] == list(kinds)
        assert all(case == other for case, other in zip(found, cases, strict=True) if case["valid"])
        assert result["chat"]["paid"]["prompt_tokens"] == 3 * (ROWS - 3)
        assert caplog.text.count("this prompt has no answer") == 3
        server.reply = obedient
        mended, _ = _run(keys)  # nothing of a fault was kept
    assert mended["answers"] == whole["answers"] and mended["chat"]["paid"]["requests"] == 3


@pytest.mark.parametrize(
    ("status", "error", "key"),
    [
        (400, {"param": "max_tokens", "code": "unsupported_parameter"}, "api_options: max_tokens is not what"),
        (400, {"message": "Unknown field `max_tokens`."}, "api_options: max_tokens is not what"),
        (422, {"message": [{"loc": ["body", "temperature"], "msg": "extra"}]}, "api_options: temperature is not what"),
        (
            400,
            {"message": "The requested model 'toy-1' does not exist.", "code": "model_not_found"},
            "api_model: .* answers 400",
        ),
        (404, {"message": "model 'toy-1' not found"}, "api_model: .* answers 404 for model toy-1"),
        (404, {}, "api_base: .* answers 404"),
        (401, {}, "api_key_env: .* refuses the key"),
        (402, {}, "api_key_env: .* refuses the key"),
        (403, {}, "api_key_env: .* refuses the key"),
        (405, {}, "api_base: .* answers 405"),
    ],
)
def test_a_wrong_configuration_ends_the_run_at_once_and_names_its_key(toy, status, error, key):
    with serving(refusing(lambda body: True, status, **error)) as server:
        with pytest.raises(UserError, match=key):
            _run({**toy, "api_base": server.api_base, "api_concurrency": 1})
        assert len(server.seen) == 1


@pytest.mark.parametrize("error", [{}, POLICY, {"message": "This model's maximum context length is 128 tokens."}])
def test_when_the_first_prompts_are_all_refused_it_is_the_configuration(toy, error):
    """And when some were answered it is not, however many follow."""
    keys = {**toy, "api_concurrency": 1}
    with serving(refusing(lambda body: True, 400, **error)) as server:
        with pytest.raises(UserError, match=r"api_model.* answers 400 .*for 3 prompts one after another \(api_max_failures\)"):
            _run({**keys, "api_base": server.api_base})
        assert len(server.seen) == 3
        server.reply = refusing(lambda body: len(server.seen) > 1, 400, **error)
        server.seen.clear()
        result, _ = _run({**keys, "api_base": server.api_base})
    assert result["answers"]["refused"] + result["answers"]["too_long"] == ROWS - 1 and result["answers"]["exact"] == 1


def test_an_endpoint_that_takes_other_options(toy):
    """It says which it does not take; those that the package openai does not know reach it too."""
    with serving(newest) as server:
        keys = {**toy, "api_base": server.api_base, "api_concurrency": 1}
        with pytest.raises(UserError, match="api_options: max_tokens .*Use 'max_completion_tokens' instead"):
            _run(keys)
        with pytest.raises(UserError, match=r"api_options: temperature .*Only the default \(1\) value"):
            _run({**keys, "api_options": {"temperature": 0, "max_completion_tokens": 64}})
        assert len(server.seen) == 2
        options = {"max_completion_tokens": 64, "chat_template_kwargs": {"enable_thinking": False}, "think": False}
        result, _ = _run({**keys, "api_options": options})
    assert result["answers"]["exact"] == ROWS
    assert server.seen[-1].items() >= options.items()


def test_an_empty_answer_that_an_earlier_version_kept_is_asked_for_again(toy):
    path = Path(toy["checkpoint_dir"]) / "chat" / "answers.sqlite"
    with serving(obedient) as server:
        keys = {**toy, "api_base": server.api_base}
        first, cases = _run(keys)
        with sqlite3.connect(path) as connection:
            empty = json.dumps({"text": "", "prompt_tokens": 3, "completion_tokens": 2})
            connection.execute("UPDATE answers SET answer = ? WHERE rowid <= 2", (empty,))
            connection.execute("UPDATE answers SET answer = json_remove(answer, '$.finish_reason', '$.fault') WHERE rowid > 2")
        second, again = _run(keys)
    assert len(server.seen) == ROWS + 2 and (cases, first["metrics"]) == (again, second["metrics"])


def test_answers_that_cannot_be_kept_end_the_run(toy):
    """A request that was paid for is not to be lost in silence."""
    path = Path(toy["checkpoint_dir"]) / "chat" / "answers.sqlite"

    def reply(handler, number, body):
        if number == 3:
            with sqlite3.connect(path) as connection:
                connection.execute("DROP TABLE answers")
        obedient(handler, number, body)

    with (
        serving(reply) as server,
        pytest.raises(RunError, match=r"an answer that was paid for cannot be kept in .*answers.sqlite \(no such table"),
    ):
        _run({**toy, "api_base": server.api_base, "api_concurrency": 1})


@pytest.mark.slow
def test_killed_half_way_it_goes_on_without_repeating_an_answer(toy, tmp_path):
    """Nothing is lost that had been answered and kept, by a signal that no process can handle."""
    keys = {**toy, "api_concurrency": 2, "eval_batch_size": ROWS}
    with serving(slow(0.3)) as server:
        words = [f"--{key}={json.dumps(value)}" for key, value in {**keys, "api_base": server.api_base}.items()]
        command = [sys.executable, str(ROOT / "run_recbole_llara.py"), "--model=ChatLLM", "--dataset=toy", *words]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(server.seen) < 7 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        asked = len(server.seen)
        result, _ = _run({**keys, "api_base": server.api_base})
    assert 7 <= asked < ROWS and ROWS <= len(server.seen) <= ROWS + 2  # the two under way are asked again
    assert result["answers"]["exact"] == ROWS and result["chat"]["cached"]["requests"] >= 5


def test_a_key_that_is_none_changes_no_answer(toy, monkeypatch):
    """Keys are masked in what an endpoint says; a stand-in for one is part of titles."""
    monkeypatch.setenv("OPENAI_API_KEY", "Title")
    with serving(obedient) as server:
        result, _ = _run({**toy, "api_base": server.api_base})
    assert result["answers"]["exact"] == ROWS


@pytest.mark.parametrize("name", ["model", "messages", "stream"])
def test_options_that_are_no_options(toy, name):
    with pytest.raises(UserError, match=f"api_options: found {name}, expected further fields"):
        _run({**toy, "api_options": {name: True}})


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
    with served("tiny") as keys:
        result, cases = _run({**toy, **keys, "max_eval_rows": 6, "chat_instruction": "", "api_options": {"max_tokens": 8}})
    paid = result["chat"]["paid"]
    assert result["n"] == 6 and paid["prompt_tokens"] > 6 * 20 and paid["completion_tokens"] >= 6
    assert all(isinstance(case["answer_text"], str) for case in cases)
