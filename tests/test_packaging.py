"""What an install holds, and what importing the package does not pull in."""

import os
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


def _build(folder: Path, by_sdist: bool = False) -> Path:
    """The wheel, built from the checkout or from its sdist."""
    code = f"""
import os, sys, tarfile
sys.argv = ["setup.py", "-q"]
from setuptools import build_meta
os.environ["DIST_EXTRA_CONFIG"] = {str(folder / "build.cfg")!r}
open(os.environ["DIST_EXTRA_CONFIG"], "w").write("[build]\\nbuild_base={folder / "build"}\\n[egg_info]\\negg_base={folder}\\n")
if {by_sdist}:
    name = build_meta.build_sdist({str(folder)!r})
    tarfile.open(os.path.join({str(folder)!r}, name)).extractall({str(folder)!r}, filter="data")
    os.chdir(os.path.join({str(folder)!r}, name.removesuffix(".tar.gz")))
build_meta.build_wheel({str(folder)!r})
"""
    done = _python(code)
    (wheel,) = folder.glob("*.whl") or pytest.fail(done.stderr)
    return wheel


@pytest.mark.skipif(not IN_CHECKOUT, reason="needs the sources")
@pytest.mark.parametrize("by_sdist", [False, True], ids=["wheel", "sdist"])
def test_a_build_holds_every_property_and_the_weights(tmp_path: Path, by_sdist: bool) -> None:
    wheel = _build(tmp_path, by_sdist)
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"recbole_llara/properties/{path.relative_to(ROOT / 'properties')}"
        for path in (ROOT / "properties").rglob("*")
        if path.suffix in (".yaml", ".hyper")
    }
    weights = ROOT / "recbole_llara" / "tiny_llama" / "weights"
    wanted |= {f"recbole_llara/tiny_llama/weights/{path.name}" for path in weights.glob("*") if path.is_file()}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "recbole_llara").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "recbole_llara" / "serving" / "http" / "static").iterdir()}
    wanted.add("recbole_llara/experiments/report.html")
    assert wanted <= names, wanted - names
    assert (
        "recbole-llara = recbole_llara.cli:main"
        in zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    )


@pytest.mark.slow
@pytest.mark.skipif(not IN_CHECKOUT, reason="needs the sources")
def test_a_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    """What pip unpacks, alone on the path: raw files are converted, a model is trained, the run recommends."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    (tmp_path / "build").mkdir()
    zipfile.ZipFile(_build(tmp_path / "build")).extractall(site)
    rows = [f"u{user},i{(user + time) % 30},{user * 100 + time}" for user in range(30) for time in range(8)]
    (work / "shop.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    (work / "goods.csv").write_text("\n".join(["item_id,title", *(f"i{n},Good {n}" for n in range(30))]), encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "recbole_llara", *words],
            cwd=work, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "240 interactions" in run("convert", "generic", "--inter=shop.csv", "--item=goods.csv", "--out=dataset")
    data = ["--data_path=dataset", "--protocol=leave_one_out", "--use_gpu=False", "--candidate_num=10", "--title_field=title"]
    data += ["--load_col={inter: [user_id, item_id, timestamp]}", "--show_progress=False"]
    run("run", "--model=LLaRA", "--dataset=shop", *data, "--rec_epochs=1", "--epochs=1", "--train_batch_size=64")
    (made,) = (work / "saved").glob("LLaRA-shop-*")
    told = run("recommend", f"--run={made}", "--history", "Good 1", "Good 2", "--k=3")
    assert [line.split()[0] for line in told.splitlines()] == ["rank", "1", "2", "3"]
    where = subprocess.run(
        [sys.executable, "-c", "import recbole_llara; print(recbole_llara.__file__)"],
        cwd=work, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
