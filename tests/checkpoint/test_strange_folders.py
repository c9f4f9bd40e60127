"""The folder of a run may come from a stranger: wherever one is read, no code of it is run, and nothing is sent or written for it."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_run import toy_keys

import recbole_llara
from recbole_llara.config import keys
from recbole_llara.config.keys import DECLARED, from_run, known_keys, recommender_keys
from recbole_llara.config.models import MODELS, stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.validation import FromRun
from recbole_llara.data.dataset import prepare_data
from recbole_llara.llm.loading import load_llm
from recbole_llara.model.build import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import prepare_recommender
from recbole_llara.serving import command as recommend
from recbole_llara.serving.export import export
from recbole_llara.serving.http import command as serve
from recbole_llara.serving.http.runs import load_runs
from recbole_llara.trainer.trainer import LLMTrainer
from recbole_llara.utils.errors import Stopped, UserError

MODELING = """
from pathlib import Path
from transformers import {base}
Path({canary!r}).touch()
class Planted{base}({base}):
    model_type = "planted"
{more}
"""
FILES = {"configuration": "LlamaConfig", "modeling": "LlamaForCausalLM", "tokenization": "PreTrainedTokenizerFast"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_llm, make_tokenizer):
    """A finished run of LLaRA and one that was stopped, an LLM tuned whole, and what they were made with."""
    folder = tmp_path_factory.mktemp("made")
    given = toy_keys(folder, make_llm, make_tokenizer) | {"max_train_rows": 16, "model": "LLaRA"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given |= {"data_path": ".", "checkpoint_dir": "saved", "llm_path": "llm"}
        run_recbole_llara(dataset="toy", config_dict=given)
        run_recbole_llara(dataset="toy", config_dict={**given, "llm_tuning": "full", "checkpoint_dir": "whole"})
        patch.setattr(LLMTrainer, "_train_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(Stopped):
            run_recbole_llara(dataset="toy", config_dict={**given, "checkpoint_dir": "stopped"})
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it all, as a stranger could send it, unpacked beside the working directory."""
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "sent")
    shutil.move(tmp_path / "sent" / "toy", tmp_path / "toy")
    return tmp_path


@pytest.fixture
def canary(place):
    """The file that planted code creates; the test ends by looking for it."""
    path = place / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def run(place):
    """The folder of the finished run."""
    (path,) = (place / "sent" / "saved").glob("LLaRA-*")
    return path


@pytest.fixture
def stopped(place):
    """The folder of the run that was stopped."""
    (path,) = (place / "sent" / "stopped").glob("LLaRA-*")
    return path


def ask(folder, **changes):
    """Let a run's folder ask for further keys; None takes one away."""
    path = folder / "request.yaml"
    asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    asked["keys"] = {key: value for key, value in {**asked["keys"], **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(asked), encoding="utf-8")


def plant(llm, place, folder, model_type="planted"):
    """An LLM whose folder brings code of its own for config, model and tokenizer."""
    folder = Path(folder)
    shutil.copytree(llm, folder, dirs_exist_ok=True)
    for name, base in FILES.items():
        more = "    from .configuration_planted import PlantedLlamaConfig as config_class" if name == "modeling" else ""
        text = MODELING.format(base=base, canary=str(place / "canary"), more=more)
        (folder / f"{name}_planted.py").write_text(text, encoding="utf-8")
    classes = {
        "AutoConfig": "configuration_planted.PlantedLlamaConfig",
        "AutoModel": "modeling_planted.PlantedLlamaForCausalLM",
        "AutoModelForCausalLM": "modeling_planted.PlantedLlamaForCausalLM",
        "AutoTokenizer": ["tokenization_planted.PlantedPreTrainedTokenizerFast", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        told |= {"auto_map": classes} | (
            {"model_type": model_type} if name == "config.json" else {"tokenizer_class": "Planted"}
        )
        (folder / name).write_text(json.dumps(told), encoding="utf-8")
    return folder


def failing_words(main, argv, capsys):
    assert main(argv) == 2
    return capsys.readouterr().err


def jsonl(folder, capsys):
    return failing_words(recommend.recommend_main, [f"--run={folder}", "--jsonl"], capsys)


ENTRIES = {
    "load": lambda folder, capsys: recbole_llara.load(folder),
    "export": lambda folder, capsys: export(folder, "out", merge=True),
    "serve": lambda folder, capsys: load_runs([str(folder)]),
    "compare": lambda folder, capsys: load_runs([str(folder.parents[1] / "copy"), str(folder)]),
    "recommend's command": lambda folder, capsys: failing_words(
        recommend.recommend_main, [f"--run={folder}", "--history", "i1"], capsys
    ),
    "its JSON lines": jsonl,
    "export's command": lambda folder, capsys: failing_words(
        recommend.export_main, [f"--run={folder}", "--output=out"], capsys
    ),
    "serve's command": lambda folder, capsys: failing_words(serve.main, [f"--run={folder}", "--port=0"], capsys),
}


def refused(enter, folder, capsys):
    """The message with which a folder is refused, by whichever way it was read."""
    try:
        return enter(folder, capsys)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_folder_cannot_let_its_own_code_run(entry, run, place, canary, capsys):
    if entry == "compare":
        shutil.copytree(run, place / "sent" / "copy")
    evil = plant(place / "sent" / "llm", place, run / "evil")
    ask(run, llm_trust_remote_code=True, llm_path=str(evil.relative_to(place)))
    if entry == "compare":
        ask(place / "sent" / "copy", llm_path="sent/llm")
        shutil.copytree(place / "sent" / "saved" / "recommenders", place / "sent" / "recommenders")
    said = refused(ENTRIES[entry], run, capsys)
    assert "llm_trust_remote_code" in said and "request.yaml" in said
    ask(run, llm_trust_remote_code=None)
    assert "llm_trust_remote_code" in refused(ENTRIES[entry], run, capsys)


def test_resume_cannot_either(stopped, place, canary):
    evil = plant(place / "sent" / "llm", place, stopped / "evil")
    ask(stopped, llm_trust_remote_code=True, llm_path=str(evil.relative_to(place)))
    with pytest.raises(UserError, match="request.yaml sets .*llm_trust_remote_code"):
        run_recbole_llara(argv=[f"--resume={stopped}"])
    ask(stopped, llm_trust_remote_code=None)
    with pytest.raises(UserError, match="was begun with other keys: llm_path"):
        run_recbole_llara(argv=[f"--resume={stopped}"])
    # auto compares the keys of the command with those that a folder tells, and takes none of them.
    config = yaml.safe_load((stopped / "config.yaml").read_text(encoding="utf-8"))
    asked = yaml.safe_load((stopped / "request.yaml").read_text(encoding="utf-8"))
    given = {**asked["keys"], "llm_path": "sent/llm", "checkpoint_dir": "sent/stopped", "resume": "auto"}
    (stopped / "config.yaml").write_text(yaml.safe_dump({**config, "llm_trust_remote_code": True}), encoding="utf-8")
    assert run_recbole_llara(dataset="toy", config_dict=given)["run_dir"] != str(stopped)


def test_the_planted_code_would_run_where_the_caller_says_so(run, place):
    """The canary is a live one; and what the caller trusts is what the caller names."""
    evil = plant(place / "sent" / "llm", place, run / "evil")
    ask(run, llm_path=str(evil.relative_to(place)))
    with pytest.raises(UserError, match="sets llm_path to .*evil"):
        recbole_llara.load(run, llm_trust_remote_code=True)
    assert not (place / "canary").exists()
    llm = load_llm(str(evil), trust_remote_code=True)[0]
    assert type(llm).__name__ == "PlantedLlamaForCausalLM" and (place / "canary").exists()


@pytest.mark.parametrize("part", ["config", "tokenizer", "kernel"])
def test_code_of_an_llm_s_folder_waits_for_the_caller(part, place, canary):
    """Each of the three places by itself, for LLMs and for text encoders."""
    llm = place / "sent" / "llm"
    evil = plant(llm, place, "evil")
    for name in {
        "config": ["tokenizer_config.json"],
        "tokenizer": ["config.json"],
        "kernel": ["config.json", "tokenizer_config.json"],
    }[part]:
        shutil.copyfile(llm / name, evil / name)
    if part == "kernel":
        told = json.loads((evil / "config.json").read_text(encoding="utf-8"))
        (evil / "config.json").write_text(json.dumps({**told, "attn_implementation": "someone/attention"}), encoding="utf-8")
    given = {"data_path": ".", "llm_path": "evil", "text_encoder_path": "evil", "checkpoint_dir": "new"}
    toy = {key: value for key, value in yaml.safe_load((next((place / "sent" / "saved").glob("LLaRA-*")) / "request.yaml").read_text())["keys"].items() if key in ("load_col", "title_field", "candidate_num", "protocol", "use_gpu", "show_progress")}  # fmt: skip
    for model, expected in (("LLaRA", "llm_trust_remote_code=True"), ("MoRec", "text_encoder_path.*such code is not run")):
        names = {key: value for key, value in {**toy, **given}.items() if model == "LLaRA" or key != "llm_path"}
        names = {key: value for key, value in names.items() if model == "MoRec" or key != "text_encoder_path"}
        with pytest.raises(UserError, match=expected):
            run_recbole_llara(model, "toy", config_dict={**names, "epochs": 1})


def test_a_config_file_trusts_nobody(place, canary):
    """Exported folders bring ``run.yaml`` along."""
    plant(place / "sent" / "llm", place, "evil")
    Path("run.yaml").write_text("llm_trust_remote_code: True\nllm_path: evil\n", encoding="utf-8")
    toy = {
        "data_path": ".",
        "title_field": "title",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
    }
    with pytest.raises(UserError, match="llm_trust_remote_code: found True in run.yaml"):
        run_recbole_llara("LLaRA", "toy", ["run.yaml"], toy)
    assert RunConfig("LLaRA", "toy", ["run.yaml"], toy, ["--llm_trust_remote_code=True"])["llm_trust_remote_code"]


PLACES = ("data_path", "candidate_file", "llm_path", "text_encoder_path", "rec_checkpoint", "checkpoint")
SHARES = {key: "//server/share" if number % 2 else r"\\server\share" for number, key in enumerate(PLACES)}
FORBIDDEN = {
    "api_base": "http://127.0.0.1:9/v1",
    "api_key_env": "HOME",
    "api_options": {"extra_headers": {}},
    "log_wandb": True,
    "save_dataset": True,
    "dataset_save_path": "saved/evil.pth",
    "dataloaders_save_path": "saved/evil.pth",
    "config_files": "evil.yaml",
    "no_such_key": 1,
}


@pytest.mark.parametrize("key", [*SHARES, *FORBIDDEN])
def test_what_else_a_folder_cannot_set(key, run, stopped, capsys):
    for folder in (run, stopped):
        ask(folder, **{key: {**SHARES, **FORBIDDEN}[key]})
    with pytest.raises(UserError, match=f"request.yaml sets .*{key} to.*--{key}="):
        run_recbole_llara(argv=[f"--resume={stopped}"])
    if key == "log_wandb":  # loading logs nothing
        return
    with pytest.raises(UserError, match=f"request.yaml sets .*{key} to.*--{key}="):
        recbole_llara.load(run)


def test_nothing_is_written_where_a_folder_says(run, stopped, place):
    for folder in (run, stopped):
        ask(folder, result_file="written/result.json", checkpoint_dir="written", data_path=".", llm_path="sent/llm")
    with pytest.raises(UserError, match="sets result_file to"):
        run_recbole_llara(argv=[f"--resume={stopped}"])
    ask(stopped, result_file=None)
    assert len(recbole_llara.load(run).recommend(["i1"])) == 5
    assert not (place / "written").exists()


@pytest.mark.parametrize("there", ["an adapter's base", "a relative path", "result.json", "no types"])
def test_ways_around(there, run, place, canary, monkeypatch):
    ask(run, data_path=".", llm_path="sent/llm")
    request = yaml.safe_load((run / "request.yaml").read_text(encoding="utf-8"))
    if there == "an adapter's base":
        (run / "llm").mkdir()
        shutil.copytree(run / "checkpoint" / "adapter", run / "llm", dirs_exist_ok=True)
        told = json.loads((run / "llm" / "adapter_config.json").read_text(encoding="utf-8"))
        evil = plant(place / "sent" / "llm", place, run / "evil")
        told |= {
            "base_model_name_or_path": str(evil),
            "auto_mapping": {"parent_library": "antigravity", "base_model_class": "x"},
        }
        (run / "llm" / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
        ask(run, llm_path=str((run / "llm").relative_to(place)))
        expected = "llm_path is"
    elif there == "a relative path":
        (run / "request.yaml").write_text(
            yaml.safe_dump({**request, "relative": {"checkpoint": "../../elsewhere"}}), encoding="utf-8"
        )
        expected = "sets checkpoint to"
    elif there == "result.json":
        (run / "result.json").write_text(json.dumps({"recommender": {"path": "/etc/hostname"}}), encoding="utf-8")
        expected = "name it by rec_checkpoint"
    else:
        (run / "request.yaml").write_text(yaml.safe_dump({**request, "keys": ["llm_trust_remote_code"]}), encoding="utf-8")
        expected = "has keys .*expected a dict"
    with pytest.raises(UserError, match=expected):
        recbole_llara.load(run)


@pytest.mark.parametrize("relative", [{"result_file": "../result.json"}, {"llm_trust_remote_code": "x"}, {"checkpoint": ["x"]}])
def test_only_paths_are_placed(relative, run):
    request = yaml.safe_load((run / "request.yaml").read_text(encoding="utf-8"))
    (run / "request.yaml").write_text(yaml.safe_dump({**request, "relative": relative}), encoding="utf-8")
    with pytest.raises(UserError, match="places .*expected a path within the folder"):
        recbole_llara.load(run)


def test_a_checkpoint_brings_no_code(place, canary):
    """``--checkpoint`` of an LLM tuned whole: config and tokenizer of its folder are not read; nor is an adapter's config."""
    (whole,) = (place / "sent" / "whole").glob("LLaRA-*")
    llm = whole / "checkpoint" / "llm"
    weights = load_file(llm / "model.safetensors")
    plant(place / "sent" / "llm", place, llm)
    from safetensors.torch import save_file

    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    meta = json.loads((whole / "checkpoint" / "meta.json").read_text(encoding="utf-8"))
    from hashlib import sha256

    meta["sha256"] = {
        file.relative_to(whole / "checkpoint").as_posix(): sha256(file.read_bytes()).hexdigest()
        for file in (whole / "checkpoint").rglob("*")
        if file.is_file() and file.name != "meta.json"
    }
    (whole / "checkpoint" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    model = recbole_llara.load(whole, data_path=".", llm_path="sent/llm").model
    assert type(model.llm).__name__ == "LlamaForCausalLM"
    state = model.llm.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_an_exported_adapter_brings_none(run, place, canary):
    """Merging takes the adapter's tensors, whatever its config tells."""
    path = run / "checkpoint" / "adapter" / "adapter_config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    evil = plant(place / "sent" / "llm", place, run / "evil")
    told |= {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x",
             "tokenizer_name_or_path": str(evil), "tokenizer_kwargs": {"trust_remote_code": True}}  # fmt: skip
    path.write_text(json.dumps(told), encoding="utf-8")
    from hashlib import sha256

    meta = json.loads((run / "checkpoint" / "meta.json").read_text(encoding="utf-8"))
    meta["sha256"]["adapter/adapter_config.json"] = sha256(path.read_bytes()).hexdigest()
    (run / "checkpoint" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    out = export(run, "out", merge=True, data_path=".", llm_path="sent/llm")
    assert (out / "llm" / "model.safetensors").is_file()


class Command:
    """Unpickled, it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_that_lie_where_others_are_looked_for(run, place, canary):
    """RecBole's caches beside the run, its ``.pth`` by ``rec_checkpoint``, and an LLM's ``pytorch_model.bin``."""
    import pickle

    evil = pickle.dumps(Command(canary))
    for folder in (run, run.parent, place):
        for name in ("toy-SequentialDataset.pth", "toy-for-LLaRA-dataloader.pth", "weights.pth"):
            (folder / name).write_bytes(evil)
    assert recbole_llara.load(run, data_path=".", llm_path="sent/llm").recommend(["i1"])
    with pytest.raises(UserError, match="rec_checkpoint: .*nothing in it was run"):
        recbole_llara.load(run, data_path=".", llm_path="sent/llm", rec_checkpoint=str(run / "weights.pth"))
    llm = place / "sent" / "llm"
    (llm / "model.safetensors").unlink()
    torch.save({"model": Command(canary)}, llm / "pytorch_model.bin")
    with pytest.raises(UserError, match="llm_path is"):
        recbole_llara.load(run, data_path=".", llm_path="sent/llm")


def test_a_caller_gives_again_what_a_folder_cannot_set(stopped, place, monkeypatch):
    """One's own run: the message holds the arguments by which it goes on, and so does the line with which it stopped."""
    ask(stopped, llm_path=str(place / "sent" / "llm"), data_path=str(place), result_file=str(place / "copy.json"))
    config = stopped / "config.yaml"
    told = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(
        yaml.safe_dump({**told, "llm_path": str(place / "sent" / "llm"), "data_path": str(place / "toy")}), encoding="utf-8"
    )
    (place / "other").mkdir()
    monkeypatch.chdir(place / "other")  # data and LLM may lie anywhere
    with pytest.raises(UserError) as error:
        run_recbole_llara(argv=[f"--resume={stopped}"])
    again = [word.rstrip(";") for word in str(error.value).split() if word.startswith("--")]
    assert {word.split("=")[0] for word in again} == {"--result_file"}
    monkeypatch.setattr(LLMTrainer, "_train_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(Stopped) as stop:
        run_recbole_llara(argv=[f"--resume={stopped}", *again])
    monkeypatch.undo()
    monkeypatch.chdir(place / "other")
    words = [word.rstrip(";") for word in str(stop.value).split() if word.startswith("--")]
    assert sorted(words) == sorted([f"--resume={stopped}", *again])
    assert run_recbole_llara(argv=words)["run_dir"] == str(stopped)


def test_no_folder_is_asked_over_the_network(run, monkeypatch):
    """A share of a network is refused by its name alone."""
    ask(run, data_path="//server/share", llm_path="//server/llm")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(UserError, match="data_path to '//server/share'"):
        recbole_llara.load(run)


def test_every_key_is_declared():
    """A new key is of no folder until somebody has said so."""
    known = set().union(*(known_keys(model, None) for model in MODELS))
    named = set(DECLARED)
    recommenders = [*stock_models(), "EASE"]
    assert known - named <= set().union(*map(recommender_keys, recommenders))
    assert named <= set().union(*(known_keys(model, None) for model in [*MODELS, *stock_models()]))
    for model in recommenders:
        for key in recommender_keys(model):
            assert from_run(key) is from_run(f"{keys.REC_PREFIX}{key}") or key in ("model", "checkpoint")
    for key in named | known:
        sounds_like_a_place = any(
            part in key for part in ("path", "file", "dir", "url", "api_", "trust", "token_", "key", "wandb")
        )
        is_plain = key in ("benchmark_filename", "token_num_threshold", "token_loss_weight", "item_token_dropout")
        assert not sounds_like_a_place or is_plain or from_run(key) is not FromRun.VALUE, key


def test_rec_checkpoint_takes_a_stranger_s_recommender_without_its_attributes(place, canary):
    """The sealed folder of a recommender is data too."""
    toy = {"data_path": ".", "title_field": "title", "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False,
           "protocol": "leave_one_out", "candidate_num": 10, "show_progress": False}  # fmt: skip
    (given,) = (place / "sent" / "saved" / "recommenders").glob("SASRec-*")
    (given / "meta.json").write_text(
        json.dumps({"model": f"!!python/object/apply:os.system ['touch {canary}']"}), encoding="utf-8"
    )
    config = RunConfig("LLaRA", "toy", config_dict={**toy, "rec_checkpoint": str(given)})
    with pytest.raises(UserError, match="rec_checkpoint: .* is damaged"):
        prepare_recommender(config, prepare_data(config))
    with pytest.raises(UserError, match="checkpoint"):
        planted = RunConfig("LLaRA", "toy", config_dict={**toy, "checkpoint": str(given)})
        build_model(planted, prepare_data(planted))
