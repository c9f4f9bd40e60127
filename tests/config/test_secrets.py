"""A planted secret is found in nothing that a run writes, prints or raises."""

import base64
import json
import logging
import sys
import time
import traceback
from pathlib import Path

import pytest
from chat_server import obedient, serving
from synthetic_data import write_toy_dataset

from recbole_llara import cli
from recbole_llara.config.keys import known_keys
from recbole_llara.config.models import MODELS, stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.secrets import is_secret, masked_text, masked_urls, redacted, without_secrets
from recbole_llara.evaluator.result import command_line
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.utils.errors import UserError

SECRET = "sk-PLANTED0secret1of2the3test"
ENCODED = base64.b64encode(f"user:{SECRET}".encode()).decode()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The keys of a run of ChatLLM, less the endpoint; the key is in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr(sys, "argv", ["run", f"--api_key={SECRET}"])
    keys = {"max_eval_rows": 4, "api_max_retries": 0, "api_timeout": 5.0, "state": "debug"}
    return {**write_toy_dataset(tmp_path), **keys}


@pytest.fixture
def leaks(tmp_path, capfd, caplog):
    """Where the secret is found: in files, on the screen, in the log's records, or in an exception and all behind it."""
    caplog.set_level(logging.DEBUG)

    def leaks(error=None, *others):
        texts = {str(path): path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()}
        texts |= dict(zip(("stdout", "stderr"), capfd.readouterr(), strict=True)) | {"log": caplog.text}
        link, number = error, 0
        while link is not None:
            texts[f"exception {number}: {type(link).__name__}"] = f"{link!r} {link}"
            link, number = link.__cause__ or link.__context__, number + 1
        if error is not None:
            texts["traceback"] = "".join(traceback.format_exception(error))
        assert any(name.endswith(".log") for name in texts) or error is not None
        return {name for name, text in texts.items() if any(secret in text for secret in (SECRET, ENCODED, *others))}

    return leaks


def _run(keys, argv=()):
    return run_recbole_llara("ChatLLM", "toy", config_dict=keys, argv=argv)


def test_the_key_of_the_environment(toy, leaks):
    with serving(obedient) as server:
        _run({**toy, "api_base": server.api_base})
    assert not leaks()


def _echo(status):
    def reply(handler, number, body):
        told = dict(handler.headers.items())
        message = f"wrong key {SECRET}; you sent {handler.path} and {told}"
        handler.send(status, {"error": {"message": message, "code": SECRET}}, {"X-Echo": SECRET})

    return reply


FAULTS = {
    **{f"status {status}": _echo(status) for status in (400, 401, 403, 404, 429, 500)},
    "timeout": lambda handler, number, body: time.sleep(0.6),
    "cut": lambda handler, number, body: handler.cut(),
    "no completion": lambda handler, number, body: handler.send(200, json.dumps({"error": SECRET})),
    "html": lambda handler, number, body: handler.send(200, f"<html>{SECRET}", {"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_that_echo_the_key(toy, leaks, fault):
    with serving(FAULTS[fault]) as server:
        base = server.api_base.replace("://", f"://user:{SECRET}@") + f"?key={SECRET}&api-version=1"
        with pytest.raises(UserError, match="api_") as caught:
            _run({**toy, "api_base": base, "api_timeout": 0.3})
    assert not leaks(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_an_answer_that_echoes_the_key(toy, leaks):
    with serving(lambda handler, number, body: handler.answer(body, f"Your key is {SECRET}")) as server:
        paths = _run({**toy, "api_base": server.api_base})
    assert not leaks()
    assert "Your key is ***" in Path(paths["cases_file"]).read_text(encoding="utf-8")


def test_an_address_with_a_password_and_a_query(toy, leaks):
    """It is used as it is, and told without them; another password takes the same kept answers."""
    seen = []

    def reply(handler, number, body):
        seen.append((handler.path, handler.headers["Authorization"]))
        obedient(handler, number, body)

    with serving(reply) as server:
        base = server.api_base.replace("://", "://user:{}@") + "?key={}&api-version=1"
        paths = _run({**toy, "api_base": base.format(SECRET, SECRET)})
        assert len(seen) == 4 and {path for path, _ in seen} == {f"/v1/chat/completions?key={SECRET}&api-version=1"}
        assert {authorization for _, authorization in seen} <= {f"Basic {ENCODED}", f"Bearer {SECRET}"}
        _run({**toy, "api_base": base.format("another", "another")})
        assert len(seen) == 4
    assert not leaks(None, "another@", "key=another")
    result = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))
    assert result["chat"]["api_base"] == f"http://***@127.0.0.1:{server.server_port}/v1?key=***&api-version=1"


@pytest.mark.parametrize(
    "options",
    [
        {"extra_headers": {"X-Api-Key": SECRET, "Authorization": f"Bearer {SECRET}"}},
        {"extra_headers": {"Proxy-Authorization": SECRET, "Cookie": f"session={SECRET}", "api-key": SECRET}},
        {"extra_body": {"api_key": SECRET, "deep": [{"password": SECRET}]}},
        {"extra_query": {"access_token": SECRET}},
    ],
)
def test_secrets_among_the_options(toy, leaks, options, monkeypatch):
    """In the config dict and on the command line."""
    word = f"--api_options={json.dumps(options)}"
    monkeypatch.setattr(sys, "argv", ["run", word])
    with serving(obedient) as server:
        keys = {**toy, "api_base": server.api_base}
        _run({**keys, "api_options": options})
        _run({**keys, "eval_batch_size": 3}, [word])
        server.reply = _echo(401)
        with pytest.raises(UserError, match="api_key_env") as caught:
            _run({**keys, "api_options": {**options, "temperature": 1}})
    assert not leaks(caught.value)
    assert len(server.answered) == 4  # the second run took the first one's


@pytest.mark.parametrize(
    "name",
    ["access_token", "api_key", "api_token", "auth_token", "chat_api_key", "client_secret", "hf_token", "huggingface_token",
     "llm_api_key", "llm_token", "openai_api_key", "password", "wandb_api_key"],
)  # fmt: skip
def test_a_secret_on_the_command_line(toy, leaks, name, capfd):
    """No key of ours takes one, so it is refused, and not repeated."""
    words = [
        [f"--{name}={SECRET}"],
        [f"--{name}", SECRET],
        [f"--{name}={SECRET}", f"--{name}={SECRET}2"],
        [f"{name}={SECRET}"],
        [f"--api_options={{{name}: {SECRET}"],  # a brace is missing
        [f"--api_options=[{{{name}: {SECRET}}}]"],
        [f"--api_timeout={{{name}: {SECRET}}}"],
        [f"--api_base={{{name}: {SECRET}}}"],
    ]
    given = [f"--{key}={json.dumps(value)}" for key, value in toy.items()]
    for arguments in words:
        assert cli.main(["--model=ChatLLM", "--dataset=toy", *given, *arguments]) == 2
        assert SECRET not in "".join(command_line(["run", *arguments]))
    with pytest.raises(UserError) as caught:
        RunConfig("ChatLLM", "toy", config_dict={**toy, name: SECRET})
    assert not leaks(caught.value)


@pytest.mark.parametrize("given", [SECRET, "0123456789abcdef0123456789abcdef", "ABCDEF0123" * 9])
def test_a_key_in_the_place_of_its_variable_s_name(toy, leaks, given):
    with pytest.raises(UserError, match="api_key_env") as caught:
        _run({**toy, "api_key_env": given})
    assert given not in str(caught.value) and not leaks(caught.value)


def test_an_llm_run_with_a_hub_token_in_the_environment(toy, leaks):
    keys = {key: value for key, value in toy.items() if not key.startswith("api_")}
    run_recbole_llara("ZeroShotLLM", "toy", config_dict=keys)
    with pytest.raises(UserError, match="llm_path") as caught:
        run_recbole_llara("ZeroShotLLM", "toy", config_dict={**keys, "llm_path": f"https://user:{SECRET}@hub/model"})
    assert not leaks(caught.value)


def test_no_ordinary_key_is_taken_for_a_secret():
    models = [*MODELS, *stock_models()]
    known = frozenset().union(*(known_keys(model, None) for model in models), known_keys("LLaRA", "SASRec"))
    assert not [key for key in known if is_secret(key)]
    for name in ("max_tokens", "max_completion_tokens", "stop", "temperature", "top_logprobs", "api_key_env", "Content-Type"):
        assert not is_secret(name)
    for name in ("X-API-KEY", "Ocp-Apim-Subscription-Key", "Proxy-Authorization", "session_token", "Set-Cookie", "dbPassword"):
        assert is_secret(name)


def test_what_is_no_secret_stays():
    plain = {"a": [1, {"b": "https://host/v1?page=2&monkey=3"}], "titles": ("Basic Instinct", "user@host"), "n": None}
    assert without_secrets(plain) == plain and redacted(plain) == repr(plain)
    assert masked_urls("see http://host:80/a@b?x=1#token=y") == "see http://host:80/a@b?x=1#token=y"
    assert masked_urls("'https://u:p@ss@host/?sig=abc'") == "'https://***@host/?sig=***'"
    assert masked_text("{api_key: abc, max_tokens: 3}") == "{api_key: ***, max_tokens: 3}"
    words = ["run", "--api_options={temperature: 0, max_tokens: 8}", "--title_field=title", "--topk=[1,5]", "--lr", "3"]
    assert command_line(words) == words
