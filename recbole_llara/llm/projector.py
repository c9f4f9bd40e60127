"""The projector: from the recommender's item embedding to one token of the LLM's input space."""

import torch
from torch import nn


class Projector(nn.Module):
    """Maps item embeddings into the LLM's input space with two linear layers (LLaRA, eq. 5).

    ``Proj(e_s) = W2 GELU(W1 e_s + b1) + b2``, with W1 of d_rec x d_llm and W2 of d_llm x d_llm.

    Args:
        rec_dim: (int, numbers) width of the recommender's item embeddings.
        llm_dim: (int, numbers) width of the LLM's input embeddings.
    """

    def __init__(self, rec_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(rec_dim, llm_dim)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, item_embeddings: torch.Tensor) -> torch.Tensor:
        """Project item embeddings.

        Args:
            item_embeddings: [..., d_rec] of any floating type.

        Returns:
            [..., d_llm]
        """
        # Recommenders are kept in fp32 while a projector may be held in another type.
        hidden = self.linear_1(item_embeddings.to(self.linear_1.weight.dtype))  # [..., d_llm]
        return self.linear_2(self.act(hidden))  # [..., d_llm]
