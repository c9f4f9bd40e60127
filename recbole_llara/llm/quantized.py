"""Folders whose weights another tool has quantised: which method, and whether it can be read here."""

from importlib.metadata import PackageNotFoundError, version

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from recbole_llara.llm.source import refused

BITSANDBYTES, COMPRESSED_TENSORS, GPTQ, AWQ = "bitsandbytes", "compressed-tensors", "gptq", "awq"
# By the quant_method of a config.json, the packages without which transformers cannot read such weights, as pip calls them.
# Others, as fp8 and mxfp4, need none, or a GPU of a certain kind, which transformers says.
PACKAGES = {
    BITSANDBYTES: (BITSANDBYTES,),
    GPTQ: ("optimum", "gptqmodel"),
    AWQ: ("gptqmodel",),
    COMPRESSED_TENSORS: (COMPRESSED_TENSORS,),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
    "quanto": ("optimum-quanto",),
    "auto-round": ("auto-round",),
    "aqlm": ("aqlm",),
    "vptq": ("vptq",),
    "eetq": ("kernels",),
}
METHODS = sorted({name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING})


def quantized_by(config: PreTrainedConfig) -> str | None:
    """The ``quant_method`` by which an LLM's weights are quantised; None = they are whole, "" = no method is named."""
    values = getattr(config, "quantization_config", None)
    if values is None:
        return None
    values = values if isinstance(values, dict) else values.to_dict()
    if values.get("load_in_4bit") or values.get("load_in_8bit"):  # files of older bitsandbytes name no method
        return BITSANDBYTES
    method = values.get("quant_method") or ""
    return str(getattr(method, "value", method))


def check_quantized(llm_path: str, config: PreTrainedConfig) -> None:
    """Refuse a folder whose weights are quantised by a method that transformers does not know, or whose package is not installed.

    Raises:
        UserError: with the method, and what to install.
    """
    method = quantized_by(config)
    if method is None:
        return
    if method not in METHODS:
        found = f"its config.json says that its weights are quantised, by the quant_method {method!r}"
        raise refused(llm_path, f"{found}, expected whole weights or one of {', '.join(METHODS)}")
    lacking = [package for package in PACKAGES.get(method, ()) if not _is_installed(package)]
    if lacking:
        found = f"its weights are quantised by {method}, which needs {' and '.join(lacking)}, not installed here"
        raise refused(llm_path, f"{found}: pip install {' '.join(lacking)}")


def choose_trainable(config: PreTrainedConfig) -> None:
    """Have the weights of a folder read as gradients can pass them, in place.

    compressed-tensors gives whole weights while it reads them, else it would do so in the first pass, too late for LoRA. gptqmodel,
    which reads GPTQ and AWQ, takes layers that are not for inference alone.
    """
    method = quantized_by(config)
    if method == COMPRESSED_TENSORS:
        config.quantization_config["dequantize"] = True
    elif method in (GPTQ, AWQ):
        config.quantization_config["backend"] = "auto_trainable"


def settle_dequantized(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make an LLM that was dequantised while it was read one of whole weights, in place.

    This is the case of compressed-tensors, and of FP8 and MXFP4 where the device has no such products.

    Args:
        dtype: of the weights, which may be of several types so far.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    # With these, save_pretrained would write weights as the folder has them, but no configuration that says so.
    vars(model).pop("_weight_conversions", None)


def keep_differentiable(model: PreTrainedModel) -> None:
    """Forbid bitsandbytes to repack weights of 4 bits on a CPU with AVX-512 BF16, in place.

    It does so in a first evaluation, and no gradient passes what is repacked: adapters below would silently learn nothing.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
