"""The package as it is installed: what pyproject.toml lists is what the folders hold."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist", "demo", "runs"}


def folders_of_code() -> set[str]:
    """Return the folders of the package with an ``__init__.py``, as dotted names."""
    files = (path.relative_to(ROOT) for path in ROOT.glob("[a-z]*/**/__init__.py"))
    inside = [path.parent.parts for path in files if path.parts[0] not in OUTSIDE]
    return {"trunkline", *(".".join(["trunkline", *parts]) for parts in inside)}


def test_every_folder_of_the_package_is_listed():
    listed = SETTINGS["tool"]["setuptools"]["packages"]
    assert len(set(listed)) == len(listed)
    assert set(listed) - {"trunkline.configs"} == folders_of_code()  # those are YAML files alone


def test_every_folder_with_code_has_an_init_file():
    with_code = {
        ".".join(["trunkline", *path.relative_to(ROOT).parent.parts])
        for path in ROOT.glob("[a-z]*/**/*.py")
        if path.relative_to(ROOT).parts[0] not in OUTSIDE
    }
    assert with_code <= folders_of_code()


def test_version_is_the_newest_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == SETTINGS["project"]["version"]


def test_wheel_holds_code_configs_and_the_mark_of_types(tmp_path):
    build = (
        "import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]); "
        "print(build_meta.build_wheel(sys.argv[2]))"
    )
    copy = tmp_path / "source"
    copy.mkdir()
    for path in ROOT.glob("[!.]*"):
        if path.name not in OUTSIDE and path.suffix != ".egg-info":
            (copy / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-c", build, str(copy), str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = [path for name in folders_of_code() for path in folder_of(name).glob("*.py")]
    wanted += [*(ROOT / "configs").rglob("*.yaml"), ROOT / "py.typed"]
    assert {f"trunkline/{path.relative_to(ROOT).as_posix()}" for path in wanted} <= names
    assert not [name for name in names if name.startswith(("trunkline/tests/", "tests/"))]


def folder_of(package: str) -> Path:
    return ROOT.joinpath(*package.split(".")[1:])
