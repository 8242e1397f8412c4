"""A user's package in small: an encoder over tokens with keyword inputs and named outputs, and data without labels."""

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.layer(self.embed(ids)).mean(1))}


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder()


def tokens() -> dict[str, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"train": 128, "validation": 64, "calibration": 64, "test": 128}
    return {
        part: [{"ids": torch.randint(0, 50, (7,), generator=generator)} for _ in range(size)]
        for part, size in sizes.items()
    }
