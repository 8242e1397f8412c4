"""The small model that AIMET's golden encodings file is of."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"


def golden_encodings() -> dict[str, Any]:
    return json.loads((GOLDEN / "m_1.0.0.encodings").read_text())


def golden_weights() -> dict[str, Tensor]:
    stored = json.loads((GOLDEN / "m_weights.json").read_text())
    return {name: torch.tensor(one["values"]).view(one["shape"]) for name, one in stored.items()}


class GoldenModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.flat, self.fc = (
            nn.Conv2d(3, 2, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 2),
        )
        self.load_state_dict(golden_weights())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(self.relu(self.conv(x))))
