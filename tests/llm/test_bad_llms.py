"""LLMs, recommenders and checkpoints that do not fit: refused by key and folder before anything is trained for them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import assert_refused, run
from llm_families import make_family
from safetensors.torch import load_file, save_file
from synthetic_data import write_toy_dataset
from transformers import PreTrainedTokenizerFast

TEXTS = [*(f" Title {item} é" for item in range(60)), "This user has chosen in the previous. Choose one of these items:"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, make_llm: Callable, make_tokenizer: Callable) -> Path:
    """A folder with the dataset ``toy`` and an LLM in ``llm``; no test changes it."""
    folder = tmp_path_factory.mktemp("sources")
    write_toy_dataset(folder)
    tokenizer = make_tokenizer(TEXTS, 400)
    make_llm("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return folder


@pytest.fixture
def keys(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Those of a run with a copy of the LLM at ``llm``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sources / "llm", tmp_path / "llm")
    return {
        "data_path": str(sources), "checkpoint_dir": "saved", "protocol": "leave_one_out", "candidate_num": 10,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "title_field": "title", "llm_path": "./llm",
    }  # fmt: skip


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def edit(name: str, **values: object) -> Callable[[Path], object]:
    """Other values in a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **values}
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def add_tokens(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["Title"])  # one of another number would stand in no prompt, as one of Gemma 3 does
    tokenizer.save_pretrained(folder)


def without_eos(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


EXPECTED = "Expected tiny, smollm2, a folder with config.json, weights and tokenizer"
# (change of the LLM's folder, what the line says)
FOLDERS = {
    "no folder": (shutil.rmtree, ["llm_path is './llm'", "no such folder", EXPECTED]),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), ["llm_path is './llm'", EXPECTED]),
    "no config": (remove("config.json"), ["llm_path is './llm'", EXPECTED]),
    "a broken config": (write("config.json", "{"), ["llm_path is './llm'", "config.json", EXPECTED]),
    "a config that is a list": (write("config.json", "[]"), ["llm_path is './llm'", "config.json", EXPECTED]),
    "an unknown architecture": (edit("config.json", model_type="lama"), ["llm_path is './llm'", "lama", EXPECTED]),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ["llm_path is './llm'", "tokenizer", "expected tokenizer.json"]),
    "a broken tokenizer": (write("tokenizer.json", "{}"), ["llm_path is './llm'", "no tokenizer can be read", "expected tokenizer.json"]),
    "a tokenizer of nothing": (
        write("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE"}}'),
        ["llm_path is './llm'", "no tokenizer can be read", "expected tokenizer.json"],
    ),
    "a cut tokenizer": (cut("tokenizer.json", 0.5), ["llm_path is './llm'", "no tokenizer can be read", "expected tokenizer.json"]),
    "a tokenizer larger than the embeddings": (add_tokens, ["llm_path is './llm'", "tokens", "expected a row for every token"]),
    "no EOS": (without_eos, ["llm_path is './llm'", "no EOS token", "expected one to end an answer"]),
    "no weights": (remove("model.safetensors"), ["llm_path is './llm'", "model.safetensors"]),
    "cut weights": (cut("model.safetensors", 0.6), ["llm_path is './llm'", "model.safetensors cannot be read", "expected a whole"]),
    "a tensor missing": (lose_a_tensor, ["llm_path is './llm'", "lack ['model.norm.weight']", "expected every tensor"]),
    "other widths": (edit("config.json", hidden_size=64), ["llm_path is './llm'", "size"]),
    "a short context": (edit("config.json", max_position_embeddings=40), ["a prompt may have", "but the LLM holds 40", "lower one of them"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_an_llm_that_does_not_fit_is_refused(
    name: str, keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, parts = FOLDERS[name]
    change(tmp_path / "llm")
    status = run("LLaRA", keys)
    assert_refused(capsys, status, parts, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("LLaRA-*"))


def put_family(family: str, folder: Path) -> None:
    """Another LLM beside the tokenizer."""
    llm = make_family(family, len(PreTrainedTokenizerFast.from_pretrained(folder)))
    (folder / "config.json").unlink()
    llm.save_pretrained(folder)


# (family, keys, what the line says)
ARCHITECTURES = {
    "an encoder": (
        "BERT",
        [],
        ["llm_path is './llm'", "BertLMHeadModel lets a token see later ones", "choose another llm_path"],
    ),
    "one that minds padding": (
        "RWKV",
        ["--llm_tuning=frozen"],
        ["llm_path is './llm'", "RwkvForCausalLM", "padding on its left"],
    ),
    "layers that LoRA cannot adapt": ("Mamba", [], ["lora_target_modules is 'auto'", "out_proj", "llm_tuning frozen or full"]),
    "images and free generation": (
        "Gemma 3 with images",
        ["--decoding=generate"],
        ["llm_path is './llm'", "Gemma3ForConditionalGeneration cannot generate", "set decoding: score"],
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_that_does_not_fit_is_refused(
    name: str, keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, arguments, parts = ARCHITECTURES[name]
    put_family(family, tmp_path / "llm")
    assert_refused(capsys, run("LLaRA", keys, arguments), parts, tmp_path / "saved")


@pytest.mark.parametrize(("family", "told"), [("Gemma 3 with images", False), ("Phi-3", False), ("MPT", True), ("BLOOM", True)])
def test_an_architecture_that_fits_trains_and_answers(
    family: str, told: bool, keys: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MPT takes no embedded prompts under peft's own wrapper; BLOOM's ALiBi reads no tree; Phi-3's window is shorter than a prompt."""
    put_family(family, tmp_path / "llm")
    assert run("LLaRA", keys, ["--epochs=1", "--max_train_rows=16", "--max_eval_rows=8", "--rec_epochs=1"]) == 0
    assert told == any("does not read all candidates' answers in one pass" in message for message in caplog.messages)


def test_a_tokenizer_without_padding_runs(keys: dict[str, object], tmp_path: Path) -> None:
    assert "pad_token" not in json.loads((tmp_path / "llm" / "tokenizer_config.json").read_text())
    assert run("LLaRA", keys, ["--llm_tuning=frozen"]) == 0


ENCODERS = {
    "no config": (remove("config.json"), ["text_encoder_path is './llm'", "no text encoder can be read", "expected tiny"]),
    "a broken config": (write("config.json", "{"), ["text_encoder_path is './llm'", "expected tiny"]),
    "a config that is a list": (write("config.json", "[]"), ["text_encoder_path is './llm'", "expected tiny"]),
    "neither padding nor EOS": (without_eos, ["text_encoder_path is './llm'", "expected one of them"]),
    "cut weights": (cut("model.safetensors", 0.6), ["text_encoder_path is './llm'", "expected tiny"]),
    "a cut tokenizer": (cut("tokenizer.json", 0.5), ["text_encoder_path is './llm'", "expected tiny"]),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_encoder_that_does_not_fit_is_refused(
    name: str, keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, parts = ENCODERS[name]
    change(tmp_path / "llm")
    keys["text_encoder_path"] = keys.pop("llm_path")
    assert_refused(capsys, run("MoRec", keys), parts, tmp_path / "saved")


@pytest.fixture(scope="module")
def trained(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of SASRec and one of LLaRA."""
    folder = tmp_path_factory.mktemp("trained")
    shared = {"data_path": str(sources), "checkpoint_dir": str(folder), "protocol": "leave_one_out", "candidate_num": 10}
    shared |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "title_field": "title"}
    assert run("SASRec", shared) == 0
    assert run("LLaRA", {**shared, "llm_path": str(sources / "llm"), "representation": "textual"}) == 0
    return folder


def checkpoint_of(trained: Path, model: str) -> Path:
    (found,) = trained.glob(f"{model}-*/checkpoint*")
    return found


REC_CHECKPOINTS = {
    "another model": (["--rec_model=GRU4Rec"], ["checkpoint.safetensors holds a SASRec", "expected a GRU4Rec"]),
    "another width": (
        ["--rec_hidden_size=32"],
        ["checkpoint.safetensors does not fit this SASRec", "hidden_size: 64 there, 32 here", "prefix rec_"],
    ),
    "other items": (
        ["--item_inter_num_interval=[9,inf)"],
        ["rec_checkpoint", "checkpoint.safetensors knows 60 items", "this run has"],
    ),
}


@pytest.mark.parametrize("name", REC_CHECKPOINTS)
def test_a_recommender_that_does_not_fit_is_refused(
    name: str, trained: Path, keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, parts = REC_CHECKPOINTS[name]
    status = run("LLaRA", keys, [f"--rec_checkpoint={checkpoint_of(trained, 'SASRec')}", *arguments])
    assert_refused(capsys, status, parts, tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "weights.pth",
            b"pickled",
            ["rec_checkpoint", "weights.pth is a pickle that no RecBole trainer wrote", "Expected a .pth of RecBole's"],
        ),
        ("weights.safetensors", b"nonsense", ["weights.safetensors is no safetensors file", "expected one written by"]),
        ("weights.safetensors", b"", ["weights.safetensors is no safetensors file", "expected one written by"]),
    ],
)
def test_a_file_that_is_no_recommender_is_refused(
    name: str, content: bytes, parts: list[str], keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(capsys, run("LLaRA", keys, [f"--rec_checkpoint={name}"]), parts, tmp_path / "saved")


def other_format(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["format"] = 99
    (folder / "meta.json").write_text(json.dumps(meta))


CHECKPOINTS = {
    "no meta.json": (remove("meta.json"), ["checkpoint", "meta.json", "expected the folder checkpoint/"]),
    "a broken meta.json": (write("meta.json", "{"), ["checkpoint", "meta.json is no JSON", "choose another checkpoint"]),
    "a meta.json of something else": (write("meta.json", "[1]"), ["checkpoint", "found format None", "expected 6"]),
    "another format": (other_format, ["checkpoint", "format", "99", "expected"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_is_refused(
    name: str, trained: Path, keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, parts = CHECKPOINTS[name]
    shutil.copytree(checkpoint_of(trained, "LLaRA"), tmp_path / "old")
    change(tmp_path / "old")
    status = run("LLaRA", keys, ["--checkpoint=old", "--representation=textual"])
    assert_refused(capsys, status, parts, tmp_path / "saved")


def test_a_checkpoint_of_another_representation_is_refused(
    trained: Path, keys: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    status = run("LLaRA", keys, [f"--checkpoint={checkpoint_of(trained, 'LLaRA')}", "--representation=numerical"])
    assert_refused(capsys, status, ["checkpoint", "representation: 'textual' there, 'numerical' here"])


def test_a_stock_checkpoint_of_another_model_is_refused(
    trained: Path, keys: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.pop("llm_path")
    status = run("GRU4Rec", keys, [f"--checkpoint={checkpoint_of(trained, 'SASRec')}"])
    assert_refused(
        capsys, status, ["checkpoint: ", "checkpoint.safetensors holds a SASRec", "expected a GRU4Rec"], tmp_path / "saved"
    )
