"""Toy runs of LLaRA and SASRec, made once, and the demo over them; one title is an attack."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient
from toy_run import toy_keys

from recbole_llara.demo.app import DemoApi, create_app
from recbole_llara.demo.runs import load_runs
from recbole_llara.quick_start import run_recbole_llara

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
    folder = tmp_path_factory.mktemp("demo")
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
def demo_runs(toy):
    """Both, loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.keys["data_path"])
        return load_runs([str(folder) for folder in toy.folders.values()])


@pytest.fixture
def api(demo_runs):
    """What answers."""
    made = DemoApi(demo_runs)
    yield made
    made.queue.close()


@pytest.fixture
def client(api):
    """Asks the application without a network."""
    with TestClient(create_app(api), base_url="http://127.0.0.1:8000") as made:
        yield made


@pytest.fixture
def address(api):
    """The application behind a real socket of loopback."""
    server = uvicorn.Server(uvicorn.Config(create_app(api), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    yield f"http://{host}:{port}/"
    server.should_exit = True
    thread.join()
