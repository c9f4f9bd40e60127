"""The LLM's arithmetic: in which type its matrix products run, and in which its weights are held."""

import torch

from recbole_llara.utils.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Capabilities as torch.cpu names them: x86 with AVX-512 or AMX, ARM with NEON or SVE.
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def resolve_compute_dtype(dtype: str, device: str | torch.device) -> torch.dtype:
    """The type of the matrix products: for "auto", bfloat16 where the device multiplies it natively, else float32.

    Args:
        dtype: auto, float32, bfloat16 or float16.
        device: where the model will run.

    Raises:
        UserError: an unknown name.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"llm_dtype is {dtype!r}, expected auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    kind = torch.device(device).type
    if kind == "cuda":
        # Emulated bfloat16 (cards before Ampere) is slower than float32.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and _cpu_multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def evaluation_dtype(dtype: str, weights: torch.dtype) -> torch.dtype:
    """The type of an evaluation's matrix products: for "auto" that of the weights, which is float32 on a CPU.

    Args:
        dtype: auto, float32, bfloat16 or float16.
        weights: the type in which they are held.

    Raises:
        UserError: finer than the weights.
    """
    if dtype == "auto":
        return weights
    if DTYPES[dtype].itemsize > weights.itemsize:
        held = str(weights).removeprefix("torch.")
        raise UserError(
            f"eval_dtype: found {dtype}, but the LLM's weights are held in {held}; expected auto, or llm_dtype {dtype} too"
        )
    return DTYPES[dtype]


def weight_dtype(compute_dtype: torch.dtype, llm_tuning: str, device: str | torch.device) -> torch.dtype:
    """The type in which the LLM's own weights are held; where it differs from the compute type, run under autocast.

    Weights that are trained are held in float32: an update of lr 1e-4 is lost in the 8 bits of bfloat16. Frozen
    ones are held in the compute type on an accelerator, where memory is what a 7B model runs out of, and in
    float32 on a CPU, where evaluation runs in float32 too.
    """
    if llm_tuning == "full" or torch.device(device).type == "cpu":
        return torch.float32
    return compute_dtype


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products, not merely a library that emulates them."""
    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # an older torch does not tell: float32 is right everywhere
        return False
    return any(capabilities.get(name, False) for name in BF16_CAPABILITIES)
