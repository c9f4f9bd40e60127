import math

import torch

from recbole_llara.llm.projector import Projector


def test_equals_the_formula_of_the_paper():
    torch.manual_seed(0)
    projector = Projector(rec_dim=3, llm_dim=4)
    projector.requires_grad_(False)
    item = torch.randn(3)
    hidden = [
        sum(float(weight) * float(value) for weight, value in zip(row, item, strict=True)) + float(bias)
        for row, bias in zip(projector.linear_1.weight, projector.linear_1.bias, strict=True)
    ]
    active = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in hidden]
    expected = [
        sum(float(weight) * value for weight, value in zip(row, active, strict=True)) + float(bias)
        for row, bias in zip(projector.linear_2.weight, projector.linear_2.bias, strict=True)
    ]
    assert torch.allclose(projector(item), torch.tensor(expected), atol=1e-6)


def test_has_two_layers_of_the_widths_of_the_paper():
    shapes = {name: tuple(parameter.shape) for name, parameter in Projector(rec_dim=64, llm_dim=128).named_parameters()}
    assert shapes == {
        "linear_1.weight": (128, 64),
        "linear_1.bias": (128,),
        "linear_2.weight": (128, 128),
        "linear_2.bias": (128,),
    }


def test_reads_items_of_another_type():
    projector = Projector(rec_dim=3, llm_dim=4).to(torch.bfloat16)
    assert projector(torch.randn(5, 3)).dtype == torch.bfloat16
