#!/usr/bin/env python
"""
Train a student on the labels alone, or use one that is trained.

    python run_student.py recipes/demo/student.yaml
    python run_student.py --model_name_or_path outputs/demo/distilled --predict_text 股市大涨
"""

from kd_trainer.console import run_console


def make_parser():
    """The [`ScriptParser`] of this script."""
    # Here, not above: --help need not wait for torch.
    from kd_trainer.arguments import AdversarialTrainingArguments, DataArguments, RunArguments, StudentArguments
    from kd_trainer.recipes import STUDENT_DEFAULTS, ScriptParser

    dataclasses = (StudentArguments, DataArguments, RunArguments, AdversarialTrainingArguments)
    return ScriptParser(dataclasses, STUDENT_DEFAULTS, description=__doc__)


def main(argv):
    """Trains, scores, reports and predicts as the command line `argv` (`list[str]`) says."""
    student_args, data_args, run_args, args, settings, _ = make_parser().parse(argv)
    from kd_trainer.building import get_student
    from kd_trainer.workflow import get_data, run_alone, start_run

    run = start_run(settings, args, data_args, run_args)
    if run is None:
        return
    data = get_data(run, student_args)
    student, tokenizer = get_student(student_args, data, data_args.max_seq_length, args.do_train)
    run_alone(run, "student", student_args, student, tokenizer, data)


def console():
    """Entry point of `kd-student`."""
    run_console(main, make_parser)


if __name__ == "__main__":
    console()
