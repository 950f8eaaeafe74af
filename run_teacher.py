#!/usr/bin/env python
"""
Fine-tune a teacher: any sequence classifier of `transformers`.

    python run_teacher.py recipes/demo/teacher.yaml
"""

from kd_trainer.arguments import ClassifierTrainingArguments, DataArguments, ModelArguments, RunArguments, ScriptParser
from kd_trainer.workflow import (
    get_data,
    get_tokenizer,
    get_transformer,
    run_alone,
    run_console,
    start_run,
    training_texts,
)


def main(argv):
    """Trains, scores, reports and predicts as the command line `argv` (`list[str]`) says."""
    parser = ScriptParser(
        (ModelArguments, DataArguments, RunArguments, ClassifierTrainingArguments), description=__doc__
    )
    model_args, data_args, run_args, args, settings, _ = parser.parse(argv)
    run = start_run(settings, args, data_args, run_args)
    data = get_data(run, model_args)
    tokenizer = get_tokenizer(model_args, training_texts(data), data_args.max_seq_length, bert_style=True)
    label_names = None if data is None else data.label_names
    model = get_transformer(model_args, tokenizer, label_names, "teacher", training=args.do_train)
    run_alone(run, "teacher", model_args, model, tokenizer, data)


def console():
    """Entry point of `kd-teacher`."""
    run_console(main)


if __name__ == "__main__":
    console()
