"""What a stranger installs: a wheel with the recipes inside, layers that hold, help at once, recipes that mean something."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from flowft import registry
from flowft.algos import base as algos

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    built = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(out))
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_has_every_module_and_every_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "flowft").rglob("*.py") if "_recipes" not in path.parts}
    assert modules <= names
    assert {f"flowft/_recipes/{path.relative_to(ROOT / 'recipes')}" for path in RECIPES} <= names
    assert "flowft/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "recipes/", "datasets/"))], "nothing else at the top level"


def test_an_installed_wheel_finds_its_recipes_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import flowft; from flowft import recipe"
    code += "; print(flowft.__file__); print(recipe.read('robomimic/lift')['dataset'])"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.split() == [str(installed / "flowft" / "__init__.py"), "robomimic/lift/mh"], done.stderr


def test_the_wheel_asks_for_the_core_dependencies_and_offers_the_extras(wheel: Path) -> None:
    file = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    metadata = zipfile.ZipFile(wheel).read(file).decode()
    required = {re.split(r"[\[><=]", line)[0].lower() for line in re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.M)}
    assert required == {"torch", "minari", "gymnasium", "h5py", "numpy", "click", "tqdm", "tensorboard", "pyyaml"}
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.M))
    simulators = {"robosuite", "ogbench", "robotics", "metaworld", "panda"}
    assert extras == simulators | {"robomimic", "d4rl", "plot", "video", "wandb", "hub", "lerobot", "zarr", "filters", "dev"}


def test_imports_go_one_way() -> None:
    done = python("-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_the_layers_contract_notices_an_import_that_goes_up(tmp_path: Path) -> None:
    copy = tmp_path / "flowft"
    for path in (ROOT / "flowft").rglob("*.py"):
        target = copy / path.relative_to(ROOT / "flowft")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    (copy / "errors.py").write_text((copy / "errors.py").read_text() + "\nimport flowft.cli.main\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])"
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "flowft.errors -> flowft.cli.main" in done.stdout


def test_help_comes_at_once_and_without_torch() -> None:
    command = [str(Path(sys.executable).with_name("flowft")), "--help"]
    times = []
    for _ in range(5):
        began = time.perf_counter()
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        times.append(time.perf_counter() - began)
    assert "pretrain" in shown.stdout
    assert min(times) < 0.3, times  # the least of five: the rest is the machine's other work
    loaded = python("-X", "importtime", "-m", "flowft", "--help")
    assert not re.search(r"\| +(torch|numpy|gymnasium|h5py)$", loaded.stderr, re.M)


def test_every_verb_of_the_help_exists_and_explains_itself() -> None:
    from flowft.cli.main import COMMANDS, cli

    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(200).rstrip(".") == line.rstrip("."), f"{name}: the two descriptions differ"


def pairs() -> list[tuple[Path, str]]:
    """Every recipe with every algorithm that it serves: one from scratch with those, a preset with its own, the others with the rest."""
    found = []
    for path in RECIPES:
        own = yaml.safe_load(path.read_text()).get("algo")
        for algo in registry.names("algos"):
            from_scratch = algos.named(algo).from_scratch
            if from_scratch == (path.parent.name == "scratch") and (path.parent.name != "presets" or algo == own):
                found.append((path, algo))
    return found


@pytest.mark.parametrize(("path", "algo"), pairs(), ids=lambda value: value if isinstance(value, str) else value.stem)
def test_every_recipe_means_something_to_both_stages_of_every_algorithm(path: Path, algo: str) -> None:
    from flowft import recipe
    from flowft.train.origins import scratch_layers
    from flowft.train.settings import Settings, finetune_section, pretrain_section, train_section

    from_scratch = path.parent.name == "scratch"
    tree = recipe.assemble(recipe.read(str(path)), {"algo": algo})
    settings = Settings.read(recipe.merge(*(layer.tree for layer in scratch_layers(tree)), tree) if from_scratch else tree)
    recipe.build(registry.get("networks", settings.policy.network).config_type, settings.policy.net, "policy.net")
    if from_scratch:
        train_section(settings)
        assert settings.env or path.stem == "published"
        return
    pretrain_section(settings)
    finetune_section(settings)


PUBLISHED_SCALE = [p for p in RECIPES if (p.parent.name in ("robomimic", "ogbench") and p.stem != "cube-single") or p.stem == "published"]


@pytest.mark.parametrize("path", PUBLISHED_SCALE, ids=lambda path: path.stem)
def test_recipes_of_published_scale_say_that_nobody_has_measured_them_here(path: Path) -> None:
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert "has not been measured here" in comment
    assert yaml.safe_load(path.read_text())["eval"]["every"] == 100_000


def test_the_make_targets_do_what_the_readme_says() -> None:
    shown = {
        target: subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
        for target in ("demo", "test", "setup", "lint")
    }
    assert "pytest" in shown["test"]
    assert [verb for verb in ("pretrain", "finetune", "plot") if f"flowft {verb}" in shown["demo"]] == ["pretrain", "finetune", "plot"]
    assert "make --no-print-directory test" in (ROOT / ".ci" / "run").read_text()
    assert "mypy" in shown["lint"]
