#!/usr/bin/env python
"""
Train a student on the labels alone, or use one that is trained.

    python run_student.py recipes/demo/student.yaml
    python run_student.py --model_name_or_path outputs/demo/distilled --predict_text 股市大涨
"""

from kd_trainer.arguments import (
    STUDENT_DEFAULTS,
    ClassifierTrainingArguments,
    DataArguments,
    RunArguments,
    ScriptParser,
    StudentArguments,
)
from kd_trainer.workflow import get_data, get_student, get_tokenizer, run_alone, run_console, start_run, training_texts


def main(argv):
    """Trains, scores, reports and predicts as the command line `argv` (`list[str]`) says."""
    parser = ScriptParser(
        (StudentArguments, DataArguments, RunArguments, ClassifierTrainingArguments),
        STUDENT_DEFAULTS,
        description=__doc__,
    )
    student_args, data_args, run_args, args, settings, _ = parser.parse(argv)
    run = start_run(settings, args, data_args, run_args)
    data = get_data(run, student_args)
    bert_style = student_args.config_name is not None
    tokenizer = get_tokenizer(student_args, training_texts(data), data_args.max_seq_length, bert_style)
    label_names = None if data is None else data.label_names
    student = get_student(student_args, tokenizer, label_names, training=args.do_train)
    run_alone(run, "student", student_args, student, tokenizer, data)


def console():
    """Entry point of `kd-student`."""
    run_console(main)


if __name__ == "__main__":
    console()
