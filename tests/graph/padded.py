"""A small masked encoder with outputs of all kinds, and padded batches for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LENGTH = WIDTH = 8
"""As many features as positions, so that sizes alone cannot tell them apart."""


class Encoder(nn.Module):
    """One layer of attention over the positions that count; token 0 fills up, and its embedding is far off."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.wide, self.out, self.ends = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), nn.Linear(WIDTH, 1)
        self.embed.weight.data[0] = 40 * torch.randn(WIDTH)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids)
        scores = self.query(self.norm(x)) @ self.key(x).mT
        hidden = torch.where(attention_mask[:, None, :] != 0, scores, torch.finfo(scores.dtype).min)
        x = x + hidden.softmax(-1) @ self.value(x)
        x = x + self.out(self.wide(x).relu())
        share = attention_mask / attention_mask.sum(1, keepdim=True)
        pooled = (x * share[:, :, None]).sum(1)
        return {"tokens": x, "pooled": pooled, "ends": self.ends(x).squeeze(-1), "turned": self.wide(x).mT}


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, shape `[size, LENGTH]`; 3 to 7 positions of each sample are real."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH, (size, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return torch.randint(1, 30, (size, LENGTH), generator=generator) * mask, mask
