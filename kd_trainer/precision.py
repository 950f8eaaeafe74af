"""Which half precision a device computes faster than float32."""

import torch


def cpu_has_bf16():
    """Whether this processor multiplies bf16 matrices itself (AVX512_BF16 or AMX); others emulate it, slower."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def half_dtype(device):
    """
    The half precision that `device` has in hardware.

    Args:
        device (`torch.device`): CPU, or an accelerator.

    Returns:
        `torch.dtype` or None: `torch.bfloat16` where there is such, else `torch.float16` on a GPU, else None.
    """
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else None
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
