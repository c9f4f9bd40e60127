"""What an install holds, and what importing the package does not pull in."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
IN_CHECKOUT = (ROOT / "setup.py").is_file()


def _python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(not IN_CHECKOUT, reason="needs the sources")
@pytest.mark.parametrize("library", ["transformers", "peft", "accelerate"])
def test_no_library_asks_for_a_newer_torch_than_the_package(library: str) -> None:
    asked = [Requirement(text) for text in requires(library) if Requirement(text).name == "torch"]
    (ours,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert asked and all(requirement.specifier.contains(ours) for requirement in asked)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, recbole_llara, recbole_llara.utils.errors, recbole_llara.config.settings, recbole_llara.cli\n"
        "print(sorted({'recbole', 'transformers', 'torch', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = _python(code)
    assert done.stdout == "[]\n", done.stderr


def test_the_run_function_is_exported() -> None:
    import recbole_llara
    from recbole_llara.quick_start import run_recbole_llara

    assert recbole_llara.run_recbole_llara is run_recbole_llara
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = recbole_llara.nothing


def test_runs_import_neither_ray_nor_pkg_resources() -> None:
    done = _python("import sys, recbole_llara.quick_start\nprint({'ray', 'pkg_resources'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_recboles_own_entry_imports() -> None:
    pytest.importorskip("ray", reason="RecBole's own quick_start needs ray")
    done = _python("import recbole.quick_start", "-W", "ignore")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not IN_CHECKOUT, reason="needs the sources")
@pytest.mark.parametrize("by_sdist", [False, True], ids=["wheel", "sdist"])
def test_a_build_holds_every_property_and_the_weights(tmp_path: Path, by_sdist: bool) -> None:
    code = f"""
import os, sys, tarfile
sys.argv = ["setup.py", "-q"]
from setuptools import build_meta
os.environ["DIST_EXTRA_CONFIG"] = {str(tmp_path / "build.cfg")!r}
open(os.environ["DIST_EXTRA_CONFIG"], "w").write("[build]\\nbuild_base={tmp_path / "build"}\\n[egg_info]\\negg_base={tmp_path}\\n")
if {by_sdist}:
    name = build_meta.build_sdist({str(tmp_path)!r})
    tarfile.open(os.path.join({str(tmp_path)!r}, name)).extractall({str(tmp_path)!r}, filter="data")
    os.chdir(os.path.join({str(tmp_path)!r}, name.removesuffix(".tar.gz")))
build_meta.build_wheel({str(tmp_path)!r})
"""
    done = _python(code)
    (wheel,) = tmp_path.glob("*.whl") or pytest.fail(done.stderr)
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"recbole_llara/properties/{path.relative_to(ROOT / 'properties')}"
        for path in (ROOT / "properties").rglob("*")
        if path.suffix in (".yaml", ".hyper")
    }
    weights = ROOT / "recbole_llara" / "tiny_llama" / "weights"
    wanted |= {f"recbole_llara/tiny_llama/weights/{path.name}" for path in weights.glob("*") if path.is_file()}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "recbole_llara").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "recbole_llara" / "demo" / "static").iterdir()}
    assert wanted <= names, wanted - names
    assert (
        "recbole-llara = recbole_llara.cli:main"
        in zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    )
