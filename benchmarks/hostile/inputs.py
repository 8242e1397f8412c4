"""Hostile inputs by kind: the files of each, written into a folder of its own, and the command that meets them."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from benchmarks.hostile.mutation import CANARY, VALUES, bytes_of, json_of, plain, yaml_of
from qatflow.door.files import shipped
from qatflow.recipe import Recipe
from qatflow.recipe.steps import STEP_CONFIGS

CALL = f"c{CANARY}\nrun\n(tR.".encode()
"""A pickle that calls the canary where it is loaded by a reader that trusts."""


@dataclass(frozen=True)
class Input:
    """A command that a process is to carry out in a folder."""

    command: str
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)


class Kinds:
    """Makes inputs of every kind from valid files.

    Args:
        run: a folder that a run left; valid files are taken from it.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.recipes = [path.read_text(encoding="utf-8") for path in sorted(shipped("recipes").glob("*.yaml"))]
        self.recipes.append((run / "recipe.yaml").read_text(encoding="utf-8"))
        self.options = {path.relative_to(shipped("conf")): path for path in shipped("conf").glob("*/*.yaml")}
        self.onnx, self.encodings = (run / "export" / "model.onnx").read_bytes(), run / "export" / "model.encodings"
        weights = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2)}
        self.weights = [save(weights), _saved(weights), _saved({"state_dict": weights, "epoch": 3})]
        self.keys = [*Recipe.model_fields, *(f"{name}.{one}" for name in Recipe.SECTIONS for one in _fields(name))]
        self.keys += [f"steps.{name}" for name in STEP_CONFIGS] + ["hydra", "hydra.run.dir", "trust", "recipe", "a.b"]

    @property
    def makers(self) -> dict[str, Callable[[random.Random, Path], Input]]:
        """The kinds by name; each writes files of one input into a folder."""
        return {
            "recipes": self.recipe,
            "option files": self.option,
            "overrides": self.override,
            "run folders": self.run_folder,
            "encodings": self.encodings_file,
            "ONNX": self.onnx_file,
            "weights": self.weights_file,
        }

    def recipe(self, chance: random.Random, folder: Path) -> Input:
        """A recipe beside a sound one: checked, listed, or completed."""
        (folder / "recipes").mkdir()
        text = chance.choice(self.recipes)
        (folder / "recipes" / "hostile.yaml").write_bytes(yaml_of(chance, text))
        given = ["--config-dir", str(folder)]
        match chance.randrange(20):
            case 0:
                return Input("qatflow", given)
            case 1:
                return Input("qatflow", [*given, "--help"])
            case 2:
                line = f"qatflow --config-dir {folder} recipe={chance.choice(('', 'hostile ', 'hostile seed='))}"
                return Input("qatflow", [*given, "-sc", "query=bash"], {"COMP_LINE": line})
            case 3:
                return Input("qatflow", [*given, "recipe=tiny", "--cfg", "job"])
        return Input("qatflow", [*given, "recipe=hostile", "--cfg", "job"])

    def option(self, chance: random.Random, folder: Path) -> Input:
        """An option of some group, chosen by a recipe."""
        name = chance.choice(list(self.options))
        place = folder / name.with_name("hostile.yaml")
        place.parent.mkdir()
        text = self.options[name].read_text(encoding="utf-8")
        place.write_bytes(yaml_of(chance, text))
        asked = [f"{name.parent}=hostile"] if chance.random() < 0.9 else ["--help"]
        return Input("qatflow", ["--config-dir", str(folder), "recipe=tiny", *asked, "--cfg", "job"])

    def override(self, chance: random.Random, folder: Path) -> Input:
        """Overrides beside a sound recipe; sweeps have a mistake, so that none begins."""
        every = [self._line(chance) for _ in range(chance.choice((1, 1, 2, 3)))]
        if chance.random() < 0.15:
            return Input("qatflow", ["-m", "recipe=tiny", "run.dir=x", *every])
        return Input("qatflow", ["recipe=tiny", *every, "--cfg", "job"])

    def _line(self, chance: random.Random) -> str:
        key = chance.choice(self.keys) if chance.random() < 0.9 else str(chance.choice(VALUES))[:3000]
        if chance.random() < 0.2:
            key += chance.choice((".x", "[0]", ".a.b.c", "@x", "..", ":", "/x", ".kwargs.x", "\udcff"))
        value = plain(chance.choice(VALUES))
        wrapped = (
            "{}",
            "{}",
            "{}",
            "[{}]",
            "{{a: {}}}",
            "{},{}",
            "choice({})",
            "range({})",
            "glob({})",
            "'{}'",
            "({}",
            "${{{}}}",
        )
        sign = chance.choice(("", "", "", "+", "++", "~"))
        return f"{sign}{key}={chance.choice(wrapped).replace('{}', value)}".replace("\x00", "")

    def run_folder(self, chance: random.Random, folder: Path) -> Input:
        """A run folder some of whose files are damaged, of another shape, or no files."""
        copy = folder / "run"
        shutil.copytree(self.run, copy)
        start = {"study": "x", "start": "naive", "bench": "x"}
        (copy / "study.json").write_text(json.dumps(start), encoding="utf-8")
        files = [path for path in copy.rglob("*") if path.suffix in (".json", ".yaml", ".csv", ".safetensors")]
        top = [path for path in files if path.name in ("result.json", "recipe.yaml", "environment.json", "study.json")]
        command = chance.choices(("report", "worker", "inspect"), (90, 9, 1))[0]
        for path in chance.choices(top if chance.random() < 0.8 else files, k=chance.choice((1, 1, 2))):
            self._damage(chance, path)
        given = {"inspect": ["recipe=tiny", f"run.dir={copy}"], "worker": [str(copy)]}
        return Input(command, given.get(command, [str(chance.choice((copy, copy, copy, folder)))]))

    def _damage(self, chance: random.Random, path: Path) -> None:
        if not path.is_file():
            return
        content = path.read_bytes()
        path.unlink()
        match chance.randrange(20):
            case 0:
                path.mkdir()
            case 1:
                path.symlink_to("nowhere")
            case 2:
                path.write_bytes(b"")
            case _ if path.suffix == ".json":
                path.write_bytes(json_of(chance, content))
            case _ if path.suffix == ".yaml":
                path.write_bytes(yaml_of(chance, content.decode(errors="replace")))
            case _:
                path.write_bytes(bytes_of(chance, content))

    def encodings_file(self, chance: random.Random, folder: Path) -> Input:
        """AIMET's encodings, to be checked or converted."""
        source = folder / "hostile.encodings"
        source.write_bytes(json_of(chance, self.encodings.read_bytes()))
        if chance.random() < 0.5:
            return Input("encodings", ["check", str(source)])
        version = chance.choice(("0.6.1", "1.0.0", "2.0.0"))
        return Input("encodings", ["convert", str(source), str(folder / "out"), "--version", version])

    def onnx_file(self, chance: random.Random, folder: Path) -> Input:
        """A model beside sound encodings: bytes changed, or fields of its nodes."""
        path = folder / "hostile.onnx"
        path.write_bytes(bytes_of(chance, self.onnx) if chance.random() < 0.5 else self._other_model(chance))
        return Input("encodings", ["check", str(self.encodings), "--model", str(path)])

    def _other_model(self, chance: random.Random) -> bytes:
        """Return a model with a few fields of nodes, tensors or values changed; it need not be valid."""
        model = onnx.load_from_string(self.onnx)
        graph = model.graph
        for _ in range(chance.choice((1, 2, 5))):
            node, stored = chance.choice(graph.node), chance.choice(graph.initializer)
            match chance.randrange(8):
                case 0:
                    del node.input[:]
                case 1:
                    del node.output[:]
                case 2:
                    node.op_type = chance.choice(("", "If", "Constant", "QuantizeLinear", "DequantizeLinear", "Conv"))
                case 3:
                    stored.dims[:] = chance.choice(([], [0], [-1], [2**62, 2**62], [1] * 40))
                case 4:
                    node.attribute.append(helper.make_attribute("axis", chance.choice((-9, 9, 2**62, 1.5, "x"))))
                case 5:
                    stored.data_type = chance.choice((0, 99, TensorProto.STRING, TensorProto.FLOAT8E4M3FN))
                case 6:
                    del graph.input[:]
                case _:
                    graph.node.append(chance.choice(graph.node))
        return bytes(model.SerializeToString())

    def weights_file(self, chance: random.Random, folder: Path) -> Input:
        """A file of weights: damaged, of other things than tensors, or a pickle that calls the canary."""
        path = folder / chance.choice(("hostile.safetensors", "hostile.pt", "hostile.pt"))
        content = bytes_of(chance, chance.choice(self.weights))
        if chance.random() < 0.3:
            content = chance.choice((_saved(chance.choice(VALUES)), CALL, _archive(CALL)))
        elif chance.random() < 0.3:
            header = json.dumps({"layer.weight": chance.choice(VALUES), "__metadata__": chance.choice(VALUES)}).encode()
            content = np.uint64(chance.choice((len(header), 0, 2**63, 7))).tobytes() + header
        path.write_bytes(content)
        return Input("weights", [str(path)])


def _archive(content: bytes) -> bytes:
    """Return a file as `torch.save` writes it around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _fields(section: str) -> list[str]:
    kind = Recipe.model_fields[section].annotation
    return list(getattr(kind, "model_fields", ()))
