#!/usr/bin/env python
"""
Distil a teacher into a student, and say how much of the teacher it kept.

    python run_distill.py recipes/demo/distill.yaml
    python run_distill.py recipes/demo/distill.yaml --temperature 2 --output_dir outputs/demo/distilled_t2
"""

from kd_trainer.arguments import (
    STUDENT_DEFAULTS,
    DataArguments,
    DistillationTrainingArguments,
    RunArguments,
    ScriptParser,
    StudentArguments,
    TeacherArguments,
)
from kd_trainer.distill import distil, find_teacher, load_teacher
from kd_trainer.workflow import get_data, run_console, start_run
from run_teacher import main as train_teacher


def main(argv):
    """Trains, scores, reports and predicts as the command line `argv` (`list[str]`) says."""
    parser = ScriptParser(
        (StudentArguments, TeacherArguments, DataArguments, RunArguments, DistillationTrainingArguments),
        STUDENT_DEFAULTS,
        description=__doc__,
    )
    student_args, teacher_args, data_args, run_args, args, settings, given = parser.parse(argv)
    run = start_run(settings, args, data_args, run_args)
    data = get_data(run, student_args, unlabelled_allowed=True)
    teacher_name = find_teacher(teacher_args, given, train_teacher)
    teacher = load_teacher(teacher_name, teacher_args, student_args, data, data_args.max_seq_length)
    distil(run, teacher, student_args, data)


def console():
    """Entry point of `kd-distill`."""
    run_console(main)


if __name__ == "__main__":
    console()
