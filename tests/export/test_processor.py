"""How weights are stored follows from the processor, and the recipe may say otherwise."""

import pytest

from qatflow.export import processor

X86 = {"architecture": "x86_64", "avx2": True, "avx512_f": True, "cpu_name": "Some Xeon"}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    def use(capabilities: dict[str, object]) -> None:
        monkeypatch.setattr(processor, "_capabilities", lambda: capabilities)
        processor.saturates.cache_clear()

    yield use
    processor.saturates.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "stored"),
    [
        (X86, "uint8"),
        ({**X86, "avx512_vnni": True}, "int8"),
        ({**X86, "avx_vnni": True}, "int8"),
        ({"architecture": "aarch64"}, "int8"),
    ],
)
def test_auto_takes_what_is_exact_here(on, capabilities: dict[str, object], stored: str) -> None:
    on(capabilities)
    assert processor.weights_stored_as("auto", 8) == stored
    assert processor.weights_stored_as("auto", 7) == "int8"
    assert processor.weights_stored_as("uint8", 8) == "uint8"
    assert processor.weights_stored_as("int8", 8) == "int8"


def test_what_is_said_of_other_machines() -> None:
    assert processor.exact_on("uint8", 8) == processor.exact_on("int8", 7) == "every processor"
    assert "VNNI" in processor.exact_on("int8", 8)


def test_the_processor_is_named(on) -> None:
    on(X86)
    assert processor.processor_name() == "Some Xeon (avx2, avx512_f)"


def test_an_unknown_processor_counts_as_one_that_saturates(on, monkeypatch: pytest.MonkeyPatch) -> None:
    on({})
    monkeypatch.setattr(processor.platform, "machine", lambda: "AMD64")
    assert processor.saturates()
