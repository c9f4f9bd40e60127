"""LoRA layers of peft, computed with less traffic: the same adapters, state and results.

On a width-192 model rank-8 adapters have 7 % of the linears' weights, yet peft's layers made a training step dearer than
full tuning: for each linear they cast its input to float32, and make three tensors as wide as its output (the adapter's
product, its scaled copy, the sum). Here the input stays in the type of the arithmetic, the scale falls on the [..., r] tensor
in the middle and the last product is added where the linear's output stands. RecBole-free.
"""

import torch
from peft.tuners.lora.layer import Linear
from torch import nn


class LeanLoraLinear(Linear):
    """peft's ``lora.Linear``; whatever is not one plain active adapter is left to peft."""

    def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """W x + b + scaling B A dropout(x).

        Args:
            x: [..., in]

        Returns:
            [..., out], in the type of the base layer's output.
        """
        names = [name for name in self.active_adapters if name in self.lora_A]
        is_plain = not (args or kwargs or self.disable_adapters or self.merged or self.fan_in_fan_out)
        if not is_plain or len(names) != 1 or names[0] in self.lora_variant or self.lora_bias[names[0]]:
            return super().forward(x, *args, **kwargs)
        name = names[0]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight  # [r, in], [out, r]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # once for both products
        output = self.base_layer(x)
        dropped = self.lora_dropout[name](x)
        if not torch.is_autocast_enabled(x.device.type):
            dropped = dropped.to(down.dtype)
        middle = nn.functional.linear(dropped, down) * self.scaling[name]  # [..., r]
        rows, middle, up = output.flatten(0, -2), middle.flatten(0, -2).to(output.dtype), up.t().to(output.dtype)
        summed = torch.addmm(rows, middle, up) if torch.is_grad_enabled() else rows.addmm_(middle, up)  # [n, out]
        return summed.view_as(output)


def make_lean(model: nn.Module) -> nn.Module:
    """Let every plain LoRA layer of a peft model compute as ``LeanLoraLinear``; others (quantised, Conv1D) stay peft's."""
    for module in model.modules():
        if type(module) is Linear and not module.fan_in_fan_out:
            module.__class__ = LeanLoraLinear
    return model
