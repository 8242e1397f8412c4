"""What of a model's outputs stands for something of its own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qatflow.export.signature import Signature
from qatflow.graph.capture import capture
from qatflow.graph.outputs import OutputPart, output_parts, whole_outputs
from tests.networks import TwoInputs


class Heads(nn.Module):
    """Boxes and scores over a grid, put together in a way of the test's."""

    def __init__(self, together: Callable[[nn.Module, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.box, self.cls = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.after = nn.Conv2d(9, 2, 1)
        self.together = together

    def forward(self, x: Tensor) -> object:
        return self.together(self, self.box(x), self.cls(x))


def parts(together: Callable[[nn.Module, Tensor, Tensor], object]) -> list[OutputPart]:
    """Return the parts, after a check that they are all of the outputs, each element once."""
    graph = capture(Heads(together).eval(), (torch.randn(2, 3, 6, 6),))
    found, outputs = output_parts(graph), graph(torch.randn(3, 3, 6, 6))
    for leaf, output in enumerate(torch.utils._pytree.tree_leaves(outputs)):
        seen = torch.full_like(output, 0 if output.is_floating_point() else 1)
        for part in found:
            if part.leaf == leaf:
                seen[part.index] += 1
        assert bool((seen == 1).all())
    return found


def names(together: Callable[[nn.Module, Tensor, Tensor], object]) -> list[str]:
    return [part.name for part in parts(together)]


def test_operands_of_a_concat_are_parts_with_their_place_and_layer() -> None:
    def head(m: nn.Module, box: Tensor, cls: Tensor) -> Tensor:
        xy, wh = box[:, :2].sigmoid() * 16, box[:, 2:].exp()
        return torch.cat([xy, wh, cls.sigmoid()], 1).flatten(2)

    found = parts(head)
    assert [part.name for part in found] == ["output[:, 0:2] (box)", "output[:, 2:4] (box)", "output[:, 4:9] (cls)"]
    assert [part.index[1] for part in found] == [slice(0, 2), slice(2, 4), slice(4, 9)]


@pytest.mark.parametrize(
    ("together", "wanted"),
    [
        (lambda m, b, c: torch.cat([b, c], 1).permute(0, 2, 3, 1), ["output[:, :, :, 0:4] (box)", "[:, :, :, 4:9]"]),
        (lambda m, b, c: torch.cat([b, c], 1).flatten(2).transpose(1, 2), ["output[:, :, 0:4] (box)", "[:, :, 4:9]"]),
        (lambda m, b, c: torch.cat([b, c], 1).unsqueeze(1).contiguous().sigmoid(), ["output[:, :, 0:4] (box)", "4:9"]),
        (lambda m, b, c: torch.stack([b, c[:, :4]], 2), ["output[:, :, 0:1] (box)", "output[:, :, 1:2] (cls)"]),
        (lambda m, b, c: {"det": torch.cat([b, c], 1), "b": b * 2}, ["det[:, 0:4] (box)", "det[:, 4:9] (cls)", "b"]),
        (lambda m, b, c: (torch.cat([b, c], 1), b), ["output_0[:, 0:4] (box)", "output_0[:, 4:9] (cls)", "output_1"]),
        (lambda m, b, c: (b, c.argmax(1)), ["output_0"]),
        (lambda m, b, c: m.after(torch.cat([b, c], 1)), ["output"]),
        (lambda m, b, c: (one := torch.cat([b, c], 1), m.after(one)), ["output_0", "output_1"]),
        (lambda m, b, c: torch.cat([b, c], 1).softmax(1), ["output"]),
        (lambda m, b, c: torch.cat([b, b], 0), ["output"]),
        (lambda m, b, c: torch.cat([b, c], 1).flatten(1), ["output"]),
        (lambda m, b, c: torch.cat([b], 1), ["output"]),
    ],
)
def test_which_parts_there_are(together: Callable[..., object], wanted: list[str]) -> None:
    found = names(together)
    assert len(found) == len(wanted)
    assert all(want in name for want, name in zip(wanted, found, strict=True))


def test_a_concat_of_levels_of_concats() -> None:
    def levels(m: nn.Module, box: Tensor, cls: Tensor) -> Tensor:
        both = torch.cat([box, cls], 1)
        small = torch.cat([box[..., :2, :2], cls[..., :2, :2]], 1)
        return torch.cat([both.flatten(2), small.reshape(-1, 9, 4)], 2).permute(0, 2, 1)

    assert names(levels) == [
        "output[:, 0:36, 0:4] (box)",
        "output[:, 0:36, 4:9] (cls)",
        "output[:, 36:40, 0:4] (box)",
        "output[:, 36:40, 4:9] (cls)",
    ]


def test_names_are_those_of_the_exported_file() -> None:
    example = (torch.randn(2, 2, 9),), {"y": torch.randn(2, 6)}
    graph = capture(TwoInputs().eval(), *example)
    found = [part.name for part in output_parts(graph)]
    assert found == list(Signature.of(graph, example).outputs) == ["sum", "parts_0", "parts_1"]
    assert whole_outputs(graph(*example[0], **example[1])) == output_parts(graph)
