"""Factories: what is trusted is imported and called, and nothing else is."""

import sys

import pytest

from qatflow.errors import RecipeError
from qatflow.tasks.factory import load_factory


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make a user's project the current directory; yield a function that writes a module into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


def test_open_packages_need_no_trust():
    assert load_factory("qatflow.tasks.digits:digits").__name__ == "digits"
    pytest.importorskip("torchvision")
    assert load_factory("torchvision.models:resnet18").__name__ == "resnet18"


def test_a_trusted_package_is_found_in_the_current_directory(project):
    project("users_own", "def model():\n    return 1\n")
    assert load_factory("users_own:model", ("users_own",))() == 1


def test_a_package_without_trust_is_not_imported(project):
    project("users_secret", "raise SystemExit('imported')\n")
    with pytest.raises(RecipeError, match=r"m.factory: .*'users_secret' is not trusted; .*trust=\[users_secret\]"):
        load_factory("users_secret:model", (), "m.factory")
    assert "users_secret" not in sys.modules


def test_trust_is_by_the_whole_name(project):
    project("users_own_other", "def model(): ...\n")
    with pytest.raises(RecipeError, match="is not trusted"):
        load_factory("users_own_other:model", ("users_own",))


def test_a_misspelt_open_package_is_not_offered_for_trust_alone():
    with pytest.raises(RecipeError, match=r"did you mean 'torchvision'\?"):
        load_factory("torchvison.models:resnet18")


def test_an_open_package_does_not_lend_out_what_it_imports():
    with pytest.raises(RecipeError, match="is not qatflow's own but comes from 'pathlib', which is not trusted"):
        load_factory("qatflow.tasks.models:Path")
    assert load_factory("qatflow.tasks.models:Path", ("pathlib",)).__name__ == "Path"


@pytest.mark.parametrize("written", ["model", "a.b:", ":f", "a.b:f.g", "a b:f", "a:b:c"])
def test_what_names_no_function_is_told(written):
    with pytest.raises(RecipeError, match=r"write it as package\.module:function"):
        load_factory(written)


def test_missing_things_are_told(project):
    project("users_own", "import users_missing\n")
    project("users_broken", "1 / 0\n")
    project("users_typo", "def build_model(): ...\nSIZE = 3\n")
    trust = ("users_own", "users_broken", "users_typo", "users_nowhere")
    for factory, message in {
        "users_nowhere.models:build": "there is no module 'users_nowhere'; check its spelling",
        "users_own:build": "needs a package that is missing: No module named 'users_missing'",
        "users_broken:build": r"importing 'users_broken' failed: .*users_broken.py:1, in <module>: ZeroDivisionError: ",
        "users_typo:build_modle": r"has no 'build_modle'; did you mean 'build_model'\?",
        "users_typo:zzz": "has no 'zzz'; it has: build_model",
        "users_typo:SIZE": "is a int and cannot be called",
    }.items():
        with pytest.raises(RecipeError, match=message):
            load_factory(factory, trust)
