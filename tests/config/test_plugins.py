"""Models of the user's own: registered by files that the key ``plugins`` names, with their keys and defaults."""

import subprocess
import sys

import pytest
from synthetic_data import write_toy_dataset

from recbole_llara.config import models
from recbole_llara.config.models import MODELS, is_llm_recommender, load_plugins, register_model, resolve_model
from recbole_llara.config.run_config import RunConfig
from recbole_llara.model.rsllm import RSLLM
from recbole_llara.recommender.closed_form import Popularity
from recbole_llara.utils.errors import UserError

PLUGIN = """
from recbole.model.sequential_recommender import SASRec

from recbole_llara import register_model


class Wide(SASRec):
    pass


register_model("Wide", Wide, kind="baseline", defaults={"hidden_size": 32, "gain": 0.5})
"""


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    """The table as it was, after each test."""
    monkeypatch.setattr(models, "MODELS", MODELS.copy())


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Keys of the toy dataset; the working folder is empty but for it."""
    monkeypatch.chdir(tmp_path)
    return write_toy_dataset(tmp_path)


def test_importing_the_function_is_light():
    code = (
        "import sys, recbole_llara; recbole_llara.register_model; sys.exit('torch' in sys.modules or 'recbole' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_baseline_takes_the_keys_of_what_it_inherits_from(toy, tmp_path):
    (tmp_path / "wide.py").write_text(PLUGIN)
    toy["plugins"] = "wide.py"
    config = RunConfig("Wide", "toy", config_dict=toy, argv=["--gain=2.0"])
    assert config["hidden_size"] == 32 and config["gain"] == 2.0
    assert config["n_layers"] == RunConfig("SASRec", "toy", config_dict=toy)["n_layers"]
    assert config.model_class.__name__ == "Wide" and not is_llm_recommender("Wide")
    with pytest.raises(UserError, match="unknown key 'gian'"):
        RunConfig("Wide", "toy", config_dict=toy, argv=["--gian=2.0"])
    with pytest.raises(UserError, match="gain: found 'x'"):
        RunConfig("Wide", "toy", config_dict=toy, argv=["--gain=x"])


def test_a_subclass_of_rsllm_takes_its_keys_and_the_file_beside_it(toy, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from recbole_llara import register_model\nfrom recbole_llara.model.rsllm import RSLLM\n"
        "class Mine(RSLLM):\n    pass\nregister_model('Mine', Mine)\n"
    )
    (tmp_path / "mine.yaml").write_text("epochs: 3\nown: 7\n")
    config = RunConfig("Mine", "toy", config_dict={**toy, "plugins": ["mine.py"]})
    inherited = RunConfig("RSLLM", "toy", config_dict=toy)
    assert config["epochs"] == 3 and config["own"] == 7
    for key in ("item_item_weight", "contrast_temperature", "representation", "learning_rate"):
        assert config[key] == inherited[key]


@pytest.mark.parametrize("name", ["LLaRA", "SASRec", "DIEN"])
def test_no_name_is_taken_twice(name):
    with pytest.raises(UserError, match=f"the name {name} is taken"):
        register_model(name, RSLLM)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (RSLLM, "baseline", "expected kind llm"),
        (Popularity, "llm", "expected kind baseline"),
        (dict, "baseline", "expected a subclass of RecBole's SequentialRecommender"),
        (RSLLM, "hybrid", "found kind 'hybrid', expected one of llm, baseline, over_recommender"),
    ],
)
def test_a_class_that_cannot_be_of_its_kind_is_refused(model, kind, message):
    with pytest.raises(UserError, match=message):
        register_model("Mine", model, kind)
        resolve_model("Mine")


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("absent.py", "absent.py: found no such file"),
        ("no_such_module", "'no_such_module', which is no module"),
        ("broken.py", r"broken.py raised ZeroDivisionError: .*broken.py, line 2"),
        ("needs.py", "needs.py imports absent_thing, which is not installed"),
        ("taken.py", "taken.py: register_model: the name LLaRA is taken"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_why(plugin, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "needs.py").write_text("import absent_thing\n")
    (tmp_path / "taken.py").write_text("from recbole_llara import register_model\nregister_model('LLaRA', dict)\n")
    with pytest.raises(UserError, match=f"^plugins: .*{message}"):
        load_plugins([plugin])


def test_a_plugin_is_imported_once(tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text("open('count', 'a').write('x')\n")
    monkeypatch.chdir(tmp_path)
    load_plugins(["counted.py", str(tmp_path / "counted.py")])
    load_plugins("counted.py")
    assert (tmp_path / "count").read_text() == "x"
