"""The package that is built is the package that is tested: every folder, every data file, in wheel and sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
MAPPED = {"model_wrappers": "model_wrappers", "tasks": "tasks", "configs": "configs"}


def expected_packages() -> set[str]:
    """Every folder below the package's four roots that holds files of the package."""
    roots = {"lmms_eval_stability": ROOT / "lmms_eval_stability"}
    roots |= {f"lmms_eval_stability.{name}": ROOT / folder for name, folder in MAPPED.items()}
    found = set()
    for name, root in roots.items():
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            if "__pycache__" not in folder.parts and any(path.is_file() for path in folder.iterdir()):
                found.add(".".join((name, *folder.relative_to(root).parts)))
    return found


def tracked_files() -> set[str]:
    """Installed paths of all files of the package that are under version control (or present, without git)."""
    listed = subprocess.run(
        ["git", "ls-files", "lmms_eval_stability", *MAPPED.values()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return {path if path.startswith("lmms_eval_stability/") else f"lmms_eval_stability/{path}" for path in listed}


def test_pyproject_lists_every_package() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(config["tool"]["setuptools"]["packages"]) == expected_packages()


def test_the_oldest_transformers_that_is_allowed_is_the_one_that_is_tested() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (allowed,) = (one for one in config["project"]["dependencies"] if one.startswith("transformers"))
    pins = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    (tested,) = (pin.partition("==")[2] for pin in pins if pin.startswith("transformers=="))
    assert allowed.startswith(f"transformers>={tested.removesuffix('.0')},")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist of this tree and the wheel built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return out


def test_wheel_and_sdist_hold_every_file(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert tracked_files() - in_wheel == set()
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= in_sdist
    assert wheel.stat().st_size < 20 * 2**20  # the demo model and four quantised ones are 13 MB of it


def test_an_installed_wheel_registers_models_and_tasks(built: Path, tmp_path: Path) -> None:
    """In an environment of its own that sees this one's dependencies, away from the source tree."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    own_site = next(path for path in sys.path if path.endswith("site-packages"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, cwd=tmp_path)
    # Dependencies come from this environment; its editable install of the package must not shadow the wheel.
    hook = Path(own_site) / "_torchvision_without_cuda.pth"
    lines = [own_site, *(hook.read_text().splitlines() if hook.exists() else [])]
    (Path(site) / "zz_dependencies.pth").write_text("\n".join(lines) + "\n")
    code = (
        "import lmms_eval_stability, lmms_eval.models as m; from lmms_eval.tasks import TaskManager;"
        "import lmms_eval_stability.model_wrappers.models as w;"
        "print(lmms_eval_stability.__file__); print(w.__file__);"
        "assert m.get_model('llava_fastv') is w.LlavaFastv;"
        "task = TaskManager().load_task_or_group(['shapes_vqa'])['shapes_vqa'];"
        "print(len(task.dataset['test']))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    package, wrappers, count = done.stdout.strip().splitlines()[-3:]
    assert package.startswith(site)
    assert wrappers.startswith(site)
    assert count == "2000"
    listed = subprocess.run(
        [tmp_path / "env" / "bin" / "lmms-eval-stability", "tasks"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "shapes_vqa" in listed.stdout
