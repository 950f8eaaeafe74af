#!/usr/bin/env python
"""
Fine-tune a teacher: any sequence classifier of `transformers`.

    python run_teacher.py recipes/demo/teacher.yaml
"""

from kd_trainer.console import run_console


def make_parser():
    """The [`ScriptParser`] of this script."""
    # Here, not above: --help need not wait for torch.
    from kd_trainer.arguments import AdversarialTrainingArguments, DataArguments, ModelArguments, RunArguments
    from kd_trainer.recipes import ScriptParser

    dataclasses = (ModelArguments, DataArguments, RunArguments, AdversarialTrainingArguments)
    return ScriptParser(dataclasses, description=__doc__)


def main(argv):
    """Trains, scores, reports and predicts as the command line `argv` (`list[str]`) says."""
    model_args, data_args, run_args, args, settings, _ = make_parser().parse(argv)
    from kd_trainer.building import get_transformer
    from kd_trainer.workflow import get_data, run_alone, start_run

    run = start_run(settings, args, data_args, run_args)
    if run is None:
        return
    data = get_data(run, model_args)
    model, tokenizer = get_transformer(model_args, data, data_args.max_seq_length, args.do_train, "teacher")
    run_alone(run, "teacher", model_args, model, tokenizer, data)


def console():
    """Entry point of `kd-teacher`."""
    run_console(main, make_parser)


if __name__ == "__main__":
    console()
