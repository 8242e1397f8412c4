"""Names of classes come from the model, else from its data; nobody's names are none."""

from types import SimpleNamespace

from torch.utils.data import Subset

from qatflow.tasks.class_names import class_names


def model_of(names: object) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(id2label=names))


def test_transformers_and_torchvision_are_read() -> None:
    data = SimpleNamespace(classes=["a", "b"])
    assert class_names(model_of({1: "no", 0: "yes"}), data) == ["yes", "no"]
    assert class_names(model_of({0: "LABEL_0", 1: "LABEL_1"}), data) == ["a", "b"]
    assert class_names(object(), Subset(Subset(data, [0]), [0])) == ["a", "b"]


def test_what_is_no_list_of_names_is_none() -> None:
    for odd in (None, "abc", 10, [1, 2], {"a": 0}):
        assert class_names(model_of(odd), SimpleNamespace(classes=odd)) == []
