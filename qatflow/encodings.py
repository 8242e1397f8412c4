"""`python -m qatflow.encodings convert|check`: AIMET's encodings files without AIMET.

From Python: `read`, `write`, `convert` and what else is in `__all__`. Needs neither AIMET nor torch; `--model` needs
the package `onnx`. A mistake is one line and exit code 1; exit code 2 means that `check` found something missing or
wrong, so argparse's own is not used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from qatflow.results.signals import carried_out, end_early

if __name__ == "__main__":
    end_early()  # what follows takes its time to import

from qatflow.errors import QatflowError
from qatflow.export.encodings import (
    EncodingsFile,
    Findings,
    ModelFacts,
    convert,
    misfits,
    read,
    read_model,
    validate,
    with_model,
    write,
)
from qatflow.export.encodings import TensorEncoding as TensorEncoding
from qatflow.export.encodings import __all__ as __all__
from qatflow.export.encodings import from_json as from_json
from qatflow.export.encodings import to_json as to_json
from qatflow.export.encodings.files import WRITERS

OK, MISTAKE, FOUND = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Tell a mistake in the command line and exit with 1."""
        self.exit(MISTAKE, f"error: {' '.join(message.split())}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parser = _Parser("python -m qatflow.encodings", description="Convert and check AIMET's encodings files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="convert|check")
    converting = commands.add_parser("convert", help="write a file of another version")
    converting.add_argument("source", type=Path, metavar="IN", help="an encodings file")
    converting.add_argument("target", type=Path, metavar="OUT", help="the file to write")
    converting.add_argument("--version", required=True, choices=list(WRITERS), help="of the file to write")
    checking = commands.add_parser("check", help="look for what contradicts itself, is missing or unknown")
    checking.add_argument("source", type=Path, metavar="FILE", help="an encodings file")
    for command in (converting, checking):
        command.add_argument("--model", type=Path, metavar="MODEL.onnx", help="the ONNX model of the tensors")
    args = parser.parse_args(argv)
    return carried_out(lambda: _command(args))


def _command(args: argparse.Namespace) -> int:
    try:
        file = read(args.source)
        model = None if args.model is None else read_model(args.model)
        if args.command == "check":
            return _check(args.source, file, model)
        _convert(file, model, args.target, args.version)
    except QatflowError as error:
        _say(sys.stderr, f"error: {' '.join(str(error).split())}")
        return MISTAKE
    return OK


def _convert(file: EncodingsFile, model: ModelFacts | None, target: Path, version: str) -> None:
    converted, notes = convert(file, version, model)
    write(target, converted, version)
    for note in notes:
        _say(sys.stderr, f"note: {note}")
    _say(sys.stdout, str(target))


def _check(path: Path, file: EncodingsFile, model: ModelFacts | None) -> int:
    """Tell what is wrong with a file, a line each, and then how much that is."""
    if model is None:
        findings = validate(file)
        coverage = "which tensors need an entry was not checked: that needs --model"
    else:
        findings = _compared(with_model(file, model), model)
        coverage = f"{len(findings.missing)} missing, {len(findings.unknown)} unknown to the model"
    for kind in ("wrong", "missing", "unknown"):
        for found in getattr(findings, kind):
            _say(sys.stdout, f"{kind}: {found}")
    _say(
        sys.stdout,
        f"{path}: version {file.version}, {len(file.tensors)} entries, {len(findings.wrong)} wrong; {coverage}",
    )
    return OK if findings.ok else FOUND


def _compared(file: EncodingsFile, model: ModelFacts) -> Findings:
    found = validate(file, activations=model.activations, parameters=model.parameters, optional=model.tensors)
    return Findings((*found.wrong, *misfits(file, model)), found.missing, found.unknown)


def _say(stream: TextIO, line: str) -> None:
    """Write a line; line breaks and what else cannot be shown, or the stream's encoding lacks, are escaped."""
    encoding = stream.encoding or "utf-8"
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in line)
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")


if __name__ == "__main__":
    sys.exit(main())
