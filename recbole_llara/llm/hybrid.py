"""The hybrid merge: behavioural tokens written into the embedded prompt, at places known since encoding."""

import torch


def merge_item_embeddings(
    inputs_embeds: torch.Tensor,
    slot_rows: torch.Tensor,
    slot_columns: torch.Tensor,
    item_embeds: torch.Tensor,
) -> torch.Tensor:
    """Overwrite the item slots of embedded prompts by the items' projected embeddings (LLaRA, eq. 6).

    The gradient of a slot flows to its item embedding, that of every other place to ``inputs_embeds``,
    which is left as it was.

    Example with B = 3 rows, T = 4 tokens and S = 3 slots (the second row has none)::

        inputs_embeds   t00 t01 t02 t03      slot_rows     0  0  2
                        t10 t11 t12 t13      slot_columns  1  3  2
                        t20 t21 t22 t23      item_embeds   a  b  c

        merged          t00  a  t02  b
                        t10 t11 t12 t13
                        t20 t21  c  t23

    Args:
        inputs_embeds: [B, T, D] embeddings of the prompts' tokens.
        slot_rows: [S] int64, the row of each slot.
        slot_columns: [S] int64, the column of each slot; no place may occur twice.
        item_embeds: [S, D] what each slot holds, cast to the type of ``inputs_embeds``.

    Returns:
        [B, T, D]

    Raises:
        ValueError: the number of slots is not the number of item embeddings, or their widths differ.
    """
    if slot_rows.shape != slot_columns.shape or slot_rows.dim() != 1:
        raise ValueError(
            f"slot rows of shape {tuple(slot_rows.shape)}, slot columns of shape {tuple(slot_columns.shape)}: "
            "expected [S] twice"
        )
    if item_embeds.shape[0] != slot_rows.shape[0]:
        raise ValueError(f"{slot_rows.shape[0]} item slots but {item_embeds.shape[0]} item embeddings: expected one each")
    if item_embeds.shape[-1] != inputs_embeds.shape[-1]:
        raise ValueError(
            f"item embeddings are {item_embeds.shape[-1]} wide, prompt tokens {inputs_embeds.shape[-1]}: "
            "expected the projector's output as wide as the LLM's input"
        )
    return inputs_embeds.index_put((slot_rows, slot_columns), item_embeds.to(inputs_embeds.dtype))
