"""Folders whose weights other tools quantised: what is read, what is trained, and what is refused in a line."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig

import recbole_llara
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.llm import quantized
from recbole_llara.llm.architecture import decoder_blocks
from recbole_llara.llm.loading import is_quantized, load_llm
from recbole_llara.llm.source import TINY_LLAMA_DIR
from recbole_llara.model.build import prepare_llm
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

FEW = {
    "max_train_rows": 16, "max_eval_rows": 4, "candidate_num": 5, "MAX_ITEM_LIST_LENGTH": 4, "llm_tuning": "lora",
    "lora_dropout": 0.1,
}  # fmt: skip
HISTORY, CANDIDATES = ["i3", "i4"], ["i5", "i6", "i7"]
BLOCK = 32  # rows and columns that share a scale
# As these tools write them into config.json.
PACKED = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None, "block_structure": None, "dynamic": False, "group_size": BLOCK, "num_bits": 4,
                "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": True, "type": "int",
            },
        }
    },
    "format": "pack-quantized", "global_compression_ratio": None, "ignore": ["lm_head"], "kv_cache_scheme": None,
    "quant_method": "compressed-tensors", "quantization_status": "compressed",
}  # fmt: skip
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
LACKING = {
    "gptq": (
        {
            "bits": 4, "checkpoint_format": "gptq", "damp_percent": 0.1, "desc_act": False, "group_size": 128, "lm_head": False,
            "quant_method": "gptq", "sym": True, "true_sequential": True,
        },
        "optimum gptqmodel",
    ),
    "awq": ({"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm", "zero_point": True}, "gptqmodel"),
    "hqq": ({"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}, "quant_method": "hqq"}, "hqq"),
    "compressed-tensors": (PACKED, "compressed-tensors"),
    "bitsandbytes": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}, "bitsandbytes"),
    "older bitsandbytes": ({"load_in_8bit": True}, "bitsandbytes"),
    "torchao": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
    "auto-round": ({"bits": 4, "group_size": 128, "quant_method": "auto-round", "sym": True}, "auto-round"),
    "aqlm": ({"quant_method": "aqlm", "nbits_per_codebook": 16}, "aqlm"),
    "vptq": ({"quant_method": "vptq", "config_for_layers": {}}, "vptq"),
    "eetq": ({"quant_method": "eetq", "weights": "int8"}, "kernels"),
}  # fmt: skip


@pytest.fixture
def wide(keys):
    """The keys of a run whose LLM has linears of whole blocks."""
    tokenizer = AutoTokenizer.from_pretrained(keys["llm_path"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(keys["llm_path"])
    return {**keys, **FEW}


def quantise(llm_path, config, weights_of):
    """Write every linear of the blocks as ``weights_of`` its weight by name, and ``config`` into config.json."""
    folder, written = Path(llm_path), {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "_proj" in name:
            layer = name.removesuffix("weight")
            written |= {f"{layer}{end}": tensor for end, tensor in weights_of(weight).items()}
        else:
            written[name] = weight.half()
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, config)


def set_config(folder, config):
    file = Path(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))


def of_fp8(weight):
    """[out, in] as float8, and a scale for each block."""
    blocks = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # [out / 32, 32, in / 32, 32]
    scale = blocks.abs().amax((1, 3)) / 448
    return {"weight": (blocks / scale[:, None, :, None]).view_as(weight).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def of_packed(weight):
    """[out, in] as eight four-bit numbers in an int32, low ones first, with 8 for zero; and a scale for each group of a row."""
    groups = weight.unflatten(1, (-1, BLOCK))
    scale = groups.abs().amax(2) / 7  # [out, in / 32]
    numbers = ((groups / scale[..., None]).round() + 8).flatten(1)  # [out, in]
    return {"weight_packed": in_int32(numbers), "weight_scale": scale.half(), "weight_shape": torch.tensor(weight.shape)}


def in_int32(numbers):
    """[..., n] four-bit numbers as [..., n / 8] int32, low ones first."""
    packed = (numbers.long().unflatten(-1, (-1, 8)) << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def of_gptq(weight):
    """[out, in] with scales for groups of 32 inputs; a zero of 8 is written as 7."""
    groups = weight.unflatten(1, (-1, BLOCK))
    scale = groups.abs().amax(2) / 7  # [out, in / 32]
    numbers = ((groups / scale[..., None]).round() + 8).flatten(1)  # [out, in]
    zeros = torch.full_like(scale.T, 7)
    begins = torch.arange(weight.shape[1], dtype=torch.int32) // BLOCK
    return {
        "qweight": in_int32(numbers).T.contiguous(),
        "qzeros": in_int32(zeros),
        "scales": scale.T.half().contiguous(),
        "g_idx": begins,
    }


def of_awq(weight):
    """The same with outputs packed, in the order in which AWQ's kernels unpack them."""
    groups = weight.unflatten(1, (-1, BLOCK))
    scale = groups.abs().amax(2) / 7
    numbers = ((groups / scale[..., None]).round() + 8).flatten(1).T  # [in, out]
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    packed = [
        in_int32(values.unflatten(-1, (-1, 8))[..., order].flatten(-2)) for values in (numbers, torch.full_like(scale.T, 8))
    ]
    return {"qweight": packed[0], "qzeros": packed[1], "scales": scale.T.half().contiguous()}


@torch.no_grad()
def logits_of(llm):
    return llm(input_ids=torch.arange(2, 42).view(2, 20)).logits


def assert_whole_run(keys, tmp_path, is_merged):
    """Trains an adapter twice alike, is loaded, exported and answers the same."""
    result = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    again = run_recbole_llara("LLaRA", "toy", config_dict=keys)
    assert result["test_result"] == again["test_result"]
    run = recbole_llara.load(result["run_dir"])
    adapters = [value for name, value in run.model.llm.named_parameters() if "lora_B" in name]
    assert adapters and all(value.abs().max() > 0 for value in adapters)
    expected = run.recommend(HISTORY, k=3, candidates=CANDIDATES)
    out = export(result["run_dir"], tmp_path / "out", merge=is_merged)
    found = recbole_llara.load(out).recommend(HISTORY, k=3, candidates=CANDIDATES)
    assert [item.item_id for item in found] == [item.item_id for item in expected]
    assert [item.score for item in found] == pytest.approx([item.score for item in expected], abs=1e-3)
    return result, out


@pytest.mark.parametrize("name", LACKING)
def test_a_method_whose_package_is_not_installed_says_which(keys, monkeypatch, name):
    config, packages = LACKING[name]
    set_config(keys["llm_path"], config)

    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(quantized, "version", version)
    with pytest.raises(UserError) as refused:
        run_recbole_llara("LLaRA", "toy", config_dict=keys)
    said = str(refused.value)
    assert said.startswith("llm_path is ") and "\n" not in said and said.endswith(f"pip install {packages}")
    assert f"quantised by {config.get('quant_method', 'bitsandbytes')}, which needs" in said
    assert not list(Path(keys["checkpoint_dir"]).glob("**/*.safetensors"))


@pytest.mark.parametrize("config", [{"quant_method": "exl2", "bits": 4.0}, {"bits": 4}])
def test_a_method_that_transformers_does_not_know_is_refused(keys, config):
    set_config(keys["llm_path"], config)
    with pytest.raises(UserError, match=rf"llm_path.*quant_method '{config.get('quant_method', '')}'.*awq, .*gptq, "):
        load_llm(keys["llm_path"])


@pytest.mark.parametrize("config", [{"quant_method": "fbgemm_fp8"}, {"quant_method": "spqr", "bits": 3, "shapes": {}}])
def test_a_method_that_this_machine_cannot_compute_is_refused(keys, config):
    if torch.cuda.is_available():
        pytest.skip("a GPU may compute it")
    set_config(keys["llm_path"], config)
    with pytest.raises(
        UserError, match=f"llm_path.*quantised by {config['quant_method']}, and transformers cannot read them here"
    ):
        load_llm(keys["llm_path"])


def test_weights_that_are_not_what_the_configuration_says_are_refused(wide):
    set_config(wide["llm_path"], {"quant_method": "bitnet", "linear_class": "autobitlinear"})
    with pytest.raises(UserError, match=r"llm_path.*weights lack \['model.layers.0"):
        load_llm(wide["llm_path"])


def test_no_configuration_is_one_of_whole_weights(keys):
    set_config(keys["llm_path"], None)
    assert not is_quantized(load_llm(keys["llm_path"], llm_tuning="full")[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "compressed-tensors"])
def test_what_is_dequantised_while_it_is_read_is_a_whole_llm(wide, tmp_path, name):
    if name == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    elif torch.cuda.is_available():
        pytest.skip("a GPU may keep float8")
    expected, whole = logits_of(load_llm(wide["llm_path"])[0]), load_llm(wide["llm_path"])[0].state_dict()
    config, weights_of, step = (FP8, of_fp8, 1 / 16) if name == "fp8" else (PACKED, of_packed, 1 / 14)
    quantise(wide["llm_path"], config, weights_of)
    llm, _ = load_llm(wide["llm_path"])
    assert {value.dtype for value in llm.parameters()} == {torch.float32} and not is_quantized(llm)
    for key, value in llm.state_dict().items():
        assert (value - whole[key]).abs().max() <= 1.01 * step * whole[key].abs().max(), key
    assert (logits_of(llm) - expected).abs().mean() < 0.5 * expected.std()
    result, out = assert_whole_run(wide, tmp_path, is_merged=True)
    plain = AutoModelForCausalLM.from_pretrained(out / "llm", dtype=torch.float32)
    torch.testing.assert_close(logits_of(plain), logits_of(recbole_llara.load(result["run_dir"]).model.llm), rtol=0, atol=1e-4)
    run_recbole_llara("LLaRA", "toy", config_dict={**wide, "llm_tuning": "full"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "packages", "weights_of"), [("gptq", ("optimum", "gptqmodel"), of_gptq), ("awq", ("gptqmodel",), of_awq)]
)
def test_weights_that_gptqmodel_reads_stay_quantised_and_are_trained_over(wide, tmp_path, name, packages, weights_of):
    for package in packages:
        pytest.importorskip(package)
    expected = logits_of(load_llm(wide["llm_path"])[0])
    quantise(wide["llm_path"], LACKING[name][0] | {"group_size": BLOCK}, weights_of)
    llm, _ = load_llm(wide["llm_path"])
    assert is_quantized(llm) and len(decoder_blocks(load_llm(wide["llm_path"], llm_layers=2)[0])) == 2
    assert (logits_of(llm) - expected).abs().mean() < 0.5 * expected.std()
    assert_whole_run(wide, tmp_path, is_merged=False)
    with pytest.raises(UserError, match=f"llm_tuning: found full, .*quantised by {name}"):
        load_llm(wide["llm_path"], llm_tuning="full")


@pytest.fixture(scope="module")
def bnb_folder(tmp_path_factory):
    """Writes ``tiny`` as a folder of bitsandbytes."""
    pytest.importorskip("bitsandbytes")

    def make(bits):
        folder = tmp_path_factory.mktemp(bits)
        config = (
            BitsAndBytesConfig(load_in_8bit=True)
            if bits == "8bit"
            else BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
            )
        )
        llm = AutoModelForCausalLM.from_pretrained(
            TINY_LLAMA_DIR, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
        )
        llm.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TINY_LLAMA_DIR).save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_folder_of_bitsandbytes_is_trained_over(keys, bnb_folder, tmp_path, make_trainer, bits):
    # Quantised beforehand or while it is loaded, the weights are the same, and so is what is computed.
    keys = {**keys, **FEW, "llm_path": bnb_folder(bits)}
    trained = []
    for changes in ({}, {"llm_path": "tiny", "llm_quantization": bits}):
        trainer, data = make_trainer({**keys, **changes})
        trainer.fit(data.train_data, None, saved=False)
        trained.append([record["loss"] for record in trainer.progress.training_log])
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)
    result, _ = assert_whole_run(keys, tmp_path, is_merged=False)
    with pytest.raises(UserError, match="merge: the LLM's weights are held quantised"):
        export(result["run_dir"], tmp_path / "merged", merge=True)


def test_what_a_folder_of_bitsandbytes_cannot(keys, bnb_folder, make_trainer):
    path = bnb_folder("4bit")
    keys = {**keys, **FEW, "llm_path": path}
    with pytest.raises(UserError, match=r"llm_tuning: found full, .*quantised by bitsandbytes .*expected lora or frozen"):
        make_trainer({**keys, "llm_tuning": "full"})
    with pytest.raises(UserError, match="llm_quantization: found 8bit, .*quantised already"):
        make_trainer({**keys, "llm_quantization": "8bit"})
    config = RunConfig("LLaRA", "toy", config_dict=keys)
    with pytest.raises(UserError, match="fsdp: True needs whole weights"):
        prepare_llm(config, prepare_data(config), is_sharded=True)


def test_blocks_of_a_folder_of_bitsandbytes_are_left_out(bnb_folder):
    path = bnb_folder("4bit")
    whole, part = load_llm(path)[0], load_llm(path, llm_layers=[0, 2])[0]
    assert len(decoder_blocks(part)) == 2 and is_quantized(part)
    for number, block in enumerate(decoder_blocks(part)):
        for name, value in block.state_dict().items():
            assert torch.equal(value, decoder_blocks(whole)[(0, 2)[number]].state_dict()[name]), name
    assert torch.isfinite(logits_of(part)).all()
