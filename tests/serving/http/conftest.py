"""Toy runs of LLaRA and SASRec, made once, and the service over them; one title is an attack."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient
from toy_run import toy_keys

from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.http.app import create_app
from recbole_llara.serving.http.items import ServedItems
from recbole_llara.serving.http.runs import load_runs
from recbole_llara.serving.http.service import Limits, Service

ATTACK = "<img src=x onerror=window.harmed=1> Title 7"
SHARED = ("data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress")


@dataclass(frozen=True)
class Toy:
    """Folders of runs by name, the keys they were made with, and the title of item i7."""

    folders: dict[str, Path]
    keys: dict
    attack: str


@pytest.fixture(scope="session")
def toy(tmp_path_factory, make_llm, make_tokenizer):
    """Two runs of the same rows."""
    folder = tmp_path_factory.mktemp("served")
    keys = toy_keys(folder, make_llm, make_tokenizer) | {"max_train_rows": 16}
    items = folder / "toy" / "toy.item"
    items.write_text(items.read_text(encoding="utf-8").replace("Title 7 é", ATTACK), encoding="utf-8")
    stock = {key: keys[key] for key in SHARED} | {"epochs": 1, "max_eval_rows": keys["max_eval_rows"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        folders = {
            name: Path(run_recbole_llara(name, "toy", config_dict=given)["run_dir"]).resolve()
            for name, given in (("LLaRA", keys), ("SASRec", stock))
        }
    return Toy(folders, keys, ATTACK)


@pytest.fixture(scope="session")
def served_runs(toy):
    """Both, loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.keys["data_path"])
        # Answers to the last bit, whatever was asked before.
        return load_runs([str(folder) for folder in toy.folders.values()], prefix_cache=0)


@pytest.fixture
def make_service(served_runs):
    """Builds what the routes ask; its queues end with the test."""
    made = []

    def make(**limits):
        made.append(Service(served_runs, Limits(**limits)))
        return made[-1]

    yield make
    for service in made:
        service.queue.close()


@pytest.fixture
def service(make_service):
    """What the routes ask."""
    return make_service()


@pytest.fixture
def make_changing(toy, monkeypatch):
    """Builds a service over one run of its own, whose items may change."""
    monkeypatch.chdir(toy.keys["data_path"])
    made = []

    def make(path=None, is_alone=True, names=("LLaRA",)):
        runs = load_runs([str(toy.folders[name]) for name in names], prefix_cache=0)
        made.append(Service(runs, items=ServedItems(runs, path, is_alone)))
        return made[-1]

    yield make
    for service in made:
        service.queue.close()


@pytest.fixture
def client(service):
    """Asks the application without a network."""
    with TestClient(create_app(service), base_url="http://127.0.0.1:8000") as made:
        yield made


@contextmanager
def _listening(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def listening():
    """Puts an application behind a real socket of loopback, while its context lasts: its address."""
    return _listening


@pytest.fixture
def address(service, listening):
    """The service behind a real socket."""
    with listening(create_app(service)) as made:
        yield made
