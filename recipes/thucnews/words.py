"""
A scikit-learn teacher for THUCNews that knows words: TF-IDF of character 1-2-grams and of the words that jieba finds,
under a linear SVM. Its answers to the training, validation and test texts, to headlines without labels and to variants
of the training texts go into a column `words` of files that `run_distill.py --teacher_column words` reads. Needs
`pip install jieba`.

    python recipes/thucnews/words.py
    python run_distill.py recipes/thucnews/distill_words.yaml
"""

import argparse
import json
from pathlib import Path

import jieba
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from kd_trainer import teacher_answers
from kd_trainer.arguments import DataArguments
from kd_trainer.console import run_console
from kd_trainer.data import load_data
from kd_trainer.transfer import HOLE, augment


def write_answers(path, teacher, texts, labels, label_names):
    """Rows of text, label (None for -100) and the teacher's answer as JSON lines."""
    answers = teacher_answers(teacher, texts, label_names)
    with path.open("w", encoding="utf-8") as file:
        for text, label, answer in zip(texts, labels, answers, strict=True):
            row = {"text": text, "label": None if label < 0 else label_names[label]}
            row["words"] = [round(float(logit), 3) for logit in answer]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path}: {len(texts)} rows")


def main(argv=None):
    """Fits the teacher on the training rows that are not kept for validation, and asks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/thucnews", help="Folder of train.txt, dev.txt, class.txt.")
    parser.add_argument("--unlabeled", nargs="*", default=["data/tnews/train.tsv", "data/tnews/unlabeled.txt"])
    parser.add_argument("--augment", nargs="*", default=["drop", "replace", "ngram", "splice"])
    parser.add_argument("--num_augmented", type=int, default=1, help="Variants of each training text.")
    parser.add_argument("--validation_split", type=float, default=0.1, help="As that of run_student.py.")
    parser.add_argument("--output_dir", default="outputs/thucnews/words")
    args = parser.parse_args(argv)
    folder, output = Path(args.data), Path(args.output_dir)
    files = {name: str(folder / file) for name, file in (("train_file", "train.txt"), ("test_file", "dev.txt"))}
    flags = DataArguments(**files, class_file=str(folder / "class.txt"), validation_split=args.validation_split)
    data = load_data(flags, ("train", "validation", "test"))
    texts = {name: split["text"][:] for name, split in data.splits.items()}
    labels = {name: split["labels"][:] for name, split in data.splits.items()}

    teacher = make_pipeline(
        make_union(
            TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(tokenizer=jieba.lcut, token_pattern=None, sublinear_tf=True),
        ),
        CalibratedClassifierCV(LinearSVC(C=0.3, random_state=0), cv=5, ensemble=False),
    )
    teacher.fit(texts["train"], [data.label_names[label] for label in labels["train"]])

    known = {text.strip() for split in texts.values() for text in split}
    # Of a table the first column; its labels are another task's.
    lines = [line for path in args.unlabeled for line in Path(path).read_text(encoding="utf-8").splitlines()]
    more = [line.split("\t")[0] for line in lines]
    more += augment(texts["train"], args.augment, args.num_augmented if args.augment else 0, HOLE)
    more = [text for text in dict.fromkeys(more) if text.strip() and text.strip() not in known]
    texts["train"], labels["train"] = [*texts["train"], *more], [*labels["train"], *[-100] * len(more)]
    output.mkdir(parents=True, exist_ok=True)
    for name in texts:
        write_answers(output / f"{name}.jsonl", teacher, texts[name], labels[name], data.label_names)


if __name__ == "__main__":
    run_console(main)
