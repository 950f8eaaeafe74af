"""A Space of the hub that shows the page of [`demo`]: a folder to push, with this package's code in it."""

import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from .errors import InputError
from .report import PACKAGES
from .whole import written_whole

PACKAGE = Path(__file__).parent

APP = '''"""The page of kd_trainer.demo; the package lies beside this file."""

from kd_trainer.demo import main

main({argv})
'''

CARD = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
models:
{models}
---

A page to try [{student}](https://huggingface.co/{student}), a small text classifier trained with kd_trainer{teacher}.

`kd_trainer/` is a copy of the package (Apache-2.0, see `LICENSE`).
"""


def check_on_hub(name, flag):
    """
    A model's name on the hub.

    Raises:
        `InputError`: For a folder, or what cannot be such a name: a Space loads its models from the hub.
    """
    parts = name.split("/")
    if Path(name).exists() or len(parts) != 2 or not all(part.strip(".~ ") for part in parts):
        raise InputError(
            f"{flag} {name}: a Space loads its models from the hub: push it (--push_to_hub --hub_model_id you/name) "
            "and give that name"
        )
    return name


def read_license():
    """The text of the package's licence."""
    beside = PACKAGE.parent / "LICENSE"
    if beside.exists():
        return beside.read_text(encoding="utf-8")
    try:
        text = distribution("kd_trainer").read_text("licenses/LICENSE")
    except PackageNotFoundError:
        text = None
    if text is None:
        raise InputError("the LICENSE of kd_trainer is not where it was installed: install the package again")
    return text


def write_space(args):
    """
    Writes `app.py`, `requirements.txt`, `README.md` and the package.

    Args:
        args (`argparse.Namespace`): Of [`demo`].

    Raises:
        `InputError`: For models that are not on the hub, or a folder that is there or cannot be written.
    """
    folder = Path(args.space)
    if folder.exists():
        raise InputError(f"--space {folder} is there already: choose another, or remove it")
    for flag in ("share", "cache_dir"):
        if getattr(args, flag):
            raise InputError(f"--{flag}: a Space has its own: leave it out")
    models = [check_on_hub(args.student, "student")]
    argv = [args.student]
    if args.teacher is not None:
        models.append(check_on_hub(args.teacher, "--teacher"))
    for flag in ("teacher", "label_map", "text_column", "text_pair_column", "max_seq_length"):
        value = getattr(args, flag)
        argv += [] if value is None else [f"--{flag}", str(value)]
    argv += [f"--{flag}" for flag in ("text_pairs", "trust_remote_code") if getattr(args, flag)]
    with written_whole(folder) as partial:
        partial.mkdir()
        if args.examples is not None:
            name = f"examples{Path(args.examples).suffix}"
            shutil.copyfile(args.examples, partial / name)
            argv += ["--examples", name]
        # Where the hub looks for it.
        argv += ["--host", "0.0.0.0", "--port", "7860"]
        (partial / "app.py").write_text(APP.format(argv=json.dumps(argv, ensure_ascii=False)), encoding="utf-8")
        # Of torch the version without the "+cpu" of a build.
        pins = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
        (partial / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
        card = CARD.format(
            title=json.dumps(f"Try {args.student.split('/')[1]}"),
            gradio=version("gradio"),
            models="\n".join(f"  - {name}" for name in models),
            student=args.student,
            teacher=""
            if args.teacher is None
            else f", beside its teacher [{args.teacher}](https://huggingface.co/{args.teacher})",
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        (partial / "LICENSE").write_text(read_license(), encoding="utf-8")
        (partial / "kd_trainer").mkdir()
        for path in sorted(PACKAGE.glob("*.py")):
            shutil.copyfile(path, partial / "kd_trainer" / path.name)
