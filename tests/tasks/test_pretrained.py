"""Pretrained models, named as their users write them."""

from pathlib import Path

import pytest
import torch

from qatflow import recipe
from qatflow.tasks.models import load_model


def test_a_pretrained_model_is_named_as_its_users_write_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**size, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    made = transformers.ViTForImageClassification(config).eval()
    made.save_pretrained(tmp_path)
    kwargs = {"pretrained_model_name_or_path": str(tmp_path), "attn_implementation": "eager"}
    x = torch.randn(2, 1, 8, 8)
    for name in ("ViTForImageClassification", "AutoModelForImageClassification"):
        model = load_model(recipe.Model(factory=f"transformers:{name}.from_pretrained", kwargs=kwargs))
        torch.testing.assert_close(model(x).logits, made(x).logits)
