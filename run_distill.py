#!/usr/bin/env python
"""
Distil a teacher into a student, and say how much of the teacher it kept.

    python run_distill.py recipes/demo/distill.yaml
    python run_distill.py recipes/demo/distill.yaml --temperature 2 --output_dir outputs/demo/distilled_t2
    python run_distill.py recipes/demo/distill.yaml --ablation --ngram_buckets 16384 --augment mask drop
    python run_distill.py recipes/demo/distill.yaml --tune --output_dir outputs/demo/search
"""

import run_teacher
from kd_trainer.console import run_console


def make_parser():
    """The [`ScriptParser`] of this script."""
    # Here, not above: --help need not wait for torch.
    from kd_trainer.arguments import (
        AblationArguments,
        DataArguments,
        DistillationTrainingArguments,
        RunArguments,
        StudentArguments,
        TeacherArguments,
        TuningArguments,
    )
    from kd_trainer.recipes import STUDENT_DEFAULTS, ScriptParser

    dataclasses = (StudentArguments, TeacherArguments, AblationArguments, TuningArguments, DataArguments, RunArguments)
    return ScriptParser((*dataclasses, DistillationTrainingArguments), STUDENT_DEFAULTS, description=__doc__)


def main(argv):
    """Trains, scores, reports and predicts as the command line `argv` (`list[str]`) says."""
    *objects, args, settings, given = make_parser().parse(argv)
    student_args, teacher_args, ablation_args, tuning_args, data_args, run_args = objects
    from kd_trainer.distill import check_states, distil, find_teachers, load_teachers, new_student, plan_alone

    if not tuning_args.tune:  # which has its own word for it
        check_states(args, teacher_args, student_args)
    from kd_trainer.ablation import ablate, prepare_ablation
    from kd_trainer.transfer import check_transfer
    from kd_trainer.tuning import prepare_search, tune
    from kd_trainer.workflow import get_data, run_alone, start_run

    if args.do_train:
        check_transfer(teacher_args, data_args.text_column, data_args.text_pair_column)
    prepare_ablation(settings, ablation_args, args)
    run = start_run(settings, args, data_args, run_args)
    if run is None:
        return
    if ablation_args.ablation:
        names = find_teachers(run, teacher_args, given, run_teacher.make_parser(), run_teacher.main)
        ablate(settings, names, ablation_args, run.output_dir)
        return
    prepare_search(run, tuning_args, teacher_args)
    data = get_data(run, student_args, unlabelled_allowed=True, answer_column=teacher_args.teacher_column)
    alone = plan_alone(run) if args.do_train and teacher_args.compare_student else None
    if data is None or student_args.tokenizer_type != "teacher":
        # Also shows a mistake in the student's flags before a teacher is trained.
        student, tokenizer = new_student(run, student_args, data)
    if data is None:  # nothing but predicting: no teacher is asked
        run_alone(run, "student", student_args, student, tokenizer, data)
        return
    names = find_teachers(run, teacher_args, given, run_teacher.make_parser(), run_teacher.main)
    teacher = load_teachers(names, teacher_args, student_args, data, data_args.max_seq_length)
    if tuning_args.tune:
        tune(run, tuning_args, teacher, student_args, data)
    else:
        distil(run, alone, teacher, student_args, data)


def console():
    """Entry point of `kd-distill`."""
    run_console(main, make_parser)


if __name__ == "__main__":
    console()
