"""The commands and keys of the README and of RESULTS.md exist, and what the README says of the embedded LLM is so."""

import re
import shlex
from pathlib import Path

import pytest
from commands import arguments_of, check_run, check_study
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from recbole_llara.config.keys import known_keys
from recbole_llara.config.models import MODELS
from recbole_llara.config.yaml_files import property_files
from recbole_llara.experiments.command import search_parser
from recbole_llara.experiments.search_definition import read_command as read_search_command
from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.prompt.representation import REPRESENTATIONS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [*README.splitlines(), *(ROOT / "RESULTS.md").read_text(encoding="utf-8").splitlines()]


COMMANDS = [arguments for arguments in arguments_of("run", LINES) if "--model" in arguments]
STUDY_COMMANDS = arguments_of("study", LINES)
SEARCH_COMMANDS = arguments_of("search", LINES)


def test_there_are_commands_to_follow():
    assert len(COMMANDS) >= 4 and len(STUDY_COMMANDS) >= 8 and len(SEARCH_COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_a_configuration(command, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "of the test")
    monkeypatch.chdir(tmp_path)
    check_run(command, tmp_path)


@pytest.mark.parametrize("command", STUDY_COMMANDS)
def test_a_study_command_is_a_study(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check_study(command, tmp_path)


@pytest.mark.parametrize("command", SEARCH_COMMANDS)
def test_a_search_command_is_a_search(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    search = read_search_command(*search_parser().parse_known_args(shlex.split(command)))
    assert search.max_evals >= 12


def test_the_readmes_parameter_file_can_be_searched(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    block = README.split("### Searching hyper-parameters")[1].split("###")[0]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    Path("own.hyper").write_text("\n".join(lines), encoding="utf-8")
    command = ["--model=LLaRA", "--dataset=ml-100k", "--params_file=own.hyper", "--algo=bayes"]
    search = read_search_command(*search_parser().parse_known_args(command))
    assert len(search.parameters) == 4


def test_every_key_of_the_table_exists():
    table = README.split("### Keys")[1].split("###")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} - {"rec_<key>"}
    assert len(names) > 15
    assert names <= known_keys("LLaRA", "SASRec")


def _first_cells(heading):
    section = README.split(heading)[1].split("\n##")[0]
    return {re.findall(r"`([^`]+)`", line)[0] for line in section.splitlines() if line.startswith("| `")}


def test_the_tables_of_representations_and_studies_are_whole():
    assert _first_cells("### Representations") == set(REPRESENTATIONS)
    assert _first_cells("### Studies") == set(property_files("study"))
    assert set(MODELS) <= set(re.findall(r"`(\w+)`", README.split("| model | what it is |")[1].split("###")[0]))


def test_the_embedded_llm_is_as_described():
    with safe_open(TINY_LLAMA_DIR / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    config = AutoConfig.from_pretrained(TINY_LLAMA_DIR)
    pieces = len(AutoTokenizer.from_pretrained(TINY_LLAMA_DIR))
    size = sum(path.stat().st_size for path in TINY_LLAMA_DIR.iterdir())
    assert f"{parameters / 1e6:.1f} million parameters" in README
    assert f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads" in README
    assert f"{pieces:,} pieces" in README
    assert size <= 12e6
