"""Imports inside the package go one way: a module may import its own layer or a lower one, never in a circle."""

import ast
from pathlib import Path

import pytest

import kd_trainer

LAYERS = [
    set(
        """
        adversarial analysis answers arguments calibration card_file classify console deferral embeddings errors files
        fonts inference json_file logit_file losses metrics modeling_bag modeling_bilstm modeling_cnn modeling_student
        network pairs precision recipes significance sparse text_limits text_noise text_stream tokenization whole
        """.split()
    ),
    set(
        """
        attribution batches building data linear loading onnx_graph output_folder robustness sources teacher transfer
        upload
        """.split()
    ),
    set(
        """
        base_trainer hub_trainer trainer
        """.split()
    ),
    set(
        """
        ablation baseline card card_sections cascade compare comparison demo demo_html demo_models demo_page
        demo_words distill ensemble export hub onnx_folder plots report space sweep trials tuning workflow
        """.split()
    ),
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
PACKAGE = Path(kd_trainer.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
SCRIPTS = {path.stem for path in PACKAGE.parent.glob("run_*.py")}


def imported_modules(name):
    """Modules of the package (`set[str]`) that `name` imports anywhere in its file, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kd_trainer.")}
            assert not {alias.name.split(".")[0] for alias in node.names} & SCRIPTS, f"{name} imports a script"
        elif isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            assert node.level or path[0] not in SCRIPTS, f"{name} imports a script"
            if path[0] == "kd_trainer" and not node.level:
                path = path[1:] or [""]
            elif not node.level:
                continue
            found |= {path[0]} if path[0] else {alias.name for alias in node.names}
    return found


def test_every_module_has_a_layer():
    assert set(MODULES) == set(LEVELS)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_goes_upward(name):
    imports = imported_modules(name)
    assert imports <= set(MODULES), "only modules are imported from the package, not its lazy names"
    upward = {other for other in imports if LEVELS[other] > LEVELS[name]}
    assert not upward, f"{name} (layer {LEVELS[name]}) imports {upward}"


def test_imports_form_no_cycle():
    remaining = {name: imported_modules(name) for name in MODULES}
    while remaining:
        leaves = {name for name, imports in remaining.items() if not imports & remaining.keys()}
        assert leaves, f"a circle among {sorted(remaining)}"
        remaining = {name: imports for name, imports in remaining.items() if name not in leaves}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("modeling_")])
def test_a_model_imports_nothing_of_the_package_but_what_travels_with_it(name):
    assert imported_modules(name) <= {"modeling_student"}


@pytest.mark.parametrize("name", kd_trainer.__all__)
def test_every_public_name_resolves(name):
    value = getattr(kd_trainer, name)
    assert value.__name__ == name and value.__module__ == f"kd_trainer.{kd_trainer.EXPORTS[name]}"
    assert value.__doc__ and name in dir(kd_trainer)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kd_trainer.no_such_name
