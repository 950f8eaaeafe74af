"""A cascade: its threshold against brute force, its answers against both models one by one, a run's report of it."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import LABEL_NAMES, held, make_rows, refused
from test_scripts import STUDENT, TEACHER, TRAINING, read_report
from transformers import AutoConfig, AutoModelForSequenceClassification

import kd_trainer
import run_distill
import run_student
import run_teacher
from kd_trainer import CascadeClassifier, coverage_curve, pick_threshold
from kd_trainer.cascade import PLOT, cascade_settings, draw, main, save_cascade
from kd_trainer.deferral import cascade_scores, choose_cascade, confidences
from kd_trainer.inference import predict_logits
from kd_trainer.report import softmax


def answers(rows=400, num_labels=3, seed=0, student=1.5, teacher=2.5, ties=False, unlabelled=0):
    """Logits of a student and a teacher that are right as often as the two numbers are large, and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_labels, size=rows)
    truth = np.eye(num_labels)[labels]
    noisy = (strength * truth + generator.normal(size=truth.shape) for strength in (student, teacher))
    both = [logits.astype(np.float32) for logits in noisy]
    if ties:
        both[0] = both[0].round(0)
    labels[:unlabelled] = -100
    return *both, labels


def brute_force(student, teacher, labels, threshold):
    """Coverage and accuracy, row by row."""
    covered = right = counted = 0
    for of_student, of_teacher, label in zip(student, teacher, labels, strict=True):
        if label == -100:
            continue
        counted += 1
        own = softmax(of_student[None].astype(np.float64))[0]
        covered += own.max() > threshold
        right += (own.argmax() if own.max() > threshold else of_teacher.argmax()) == label
    return covered / counted, right / counted


CASES = [
    {},
    {"ties": True},
    {"num_labels": 2, "unlabelled": 40},
    {"student": 3.0, "teacher": 1.0},
    {"student": 0.0},
    {"rows": 7},
    {"rows": 1},
]


@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_what_asking_row_by_row_gives_at_every_threshold(case):
    student, teacher, labels = answers(**case)
    curve = coverage_curve(student, teacher, labels)
    found = [brute_force(student, teacher, labels, threshold) for threshold in curve["threshold"]]
    np.testing.assert_allclose(curve["coverage"], [coverage for coverage, _ in found], rtol=1e-12)
    np.testing.assert_allclose(curve["accuracy"], [accuracy for _, accuracy in found], rtol=1e-12)
    # One step for each confidence that occurs: nothing in between is left out.
    assert len(curve["threshold"]) == len(np.unique(confidences(student)[labels != -100])) + 1
    assert (curve["threshold"][0], curve["threshold"][-1]) == (1, 0) and (np.diff(curve["threshold"]) < 0).all()


@pytest.mark.parametrize("margin", [0.0, 1.0, 1.645])
@pytest.mark.parametrize("case", CASES[:5])
def test_no_smaller_threshold_passes_and_the_one_picked_does(case, margin):
    student, teacher, labels = answers(**case)
    threshold = pick_threshold(student, teacher, labels, margin)
    kept = labels != -100
    sure, label = confidences(student)[kept], labels[kept]
    students, teachers = student[kept].argmax(1) == label, teacher[kept].argmax(1) == label

    def passes(threshold):
        answered = sure > threshold
        alone = int((students & ~teachers & answered).sum()), int((teachers & ~students & answered).sum())
        return alone[0] - alone[1] >= margin * np.sqrt(sum(alone))

    assert passes(threshold)
    smaller = [one for one in (0.0, *sure) if one < threshold and (sure > one).sum() > (sure > threshold).sum()]
    assert not any(passes(one) for one in smaller)
    if margin == 0:  # then it is the largest coverage at which both are at least as accurate as the teacher
        assert cascade_scores(student, teacher, labels, threshold)["accuracy"] >= teachers.mean()


def test_a_margin_holds_on_rows_that_it_has_not_seen_and_none_does_not():
    losses = {0.0: [], 1.645: []}
    for seed in range(40):
        student, teacher, labels = answers(6000, seed=seed, student=2.0, teacher=2.3)
        for margin, found in losses.items():
            threshold = pick_threshold(student[:1000], teacher[:1000], labels[:1000], margin)
            scores = cascade_scores(student[1000:], teacher[1000:], labels[1000:], threshold)
            found.append(scores["teacher_accuracy"] - scores["accuracy"])
    assert np.mean(losses[1.645]) < np.mean(losses[0.0]) / 3
    assert np.mean(losses[0.0]) > 0 and np.mean(losses[1.645]) < 0.002


def test_a_student_that_is_better_never_asks_and_one_that_knows_nothing_always_does():
    student, teacher, labels = answers(1000, student=4.0, teacher=0.5)
    assert pick_threshold(student, teacher, labels) == 0
    # Sure of itself, and wrong wherever it is surest.
    wrong = np.where(np.eye(3)[labels] == 1, -9.0, 9.0).astype(np.float32)
    assert pick_threshold(wrong, 20 * np.eye(3)[labels], labels) == 1


def test_equal_answers_need_no_teacher():
    student, _, labels = answers(400)
    assert pick_threshold(student, student, labels) == 0


def test_equal_confidences_stay_together():
    student, teacher, labels = answers(400)
    student = np.where(np.arange(3) == student.argmax(1)[:, None], 5, 0).astype(np.float32)  # all alike
    curve = coverage_curve(student, teacher, labels)
    assert curve["threshold"].tolist() == [1, 0] and curve["coverage"].tolist() == [0, 1]


def test_neighbouring_and_saturated_confidences_are_told_apart():
    student = np.array([[0, 100.0], [0, 36.0], [0, 36.5], [0, 0]])
    teacher, labels = np.array([[0, 1.0]] * 4), np.array([1, 1, 1, 0])
    curve = coverage_curve(student, teacher, labels)
    for threshold, coverage in zip(curve["threshold"], curve["coverage"], strict=True):
        assert (confidences(student) > threshold).mean() == coverage


def test_one_label_is_always_right():
    logits = np.ones((400, 1))
    assert pick_threshold(logits, logits, np.zeros(400, dtype=int)) == 0


@pytest.mark.parametrize("rows, unlabelled", [(299, 0), (320, 30), (400, 400)])
def test_too_few_labelled_rows_are_refused(rows, unlabelled):
    with refused(f"{rows - unlabelled} labelled rows", "300"):
        pick_threshold(*answers(rows, unlabelled=unlabelled))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_no_numbers_are_refused(value, side):
    given = answers()
    given[side][3, 1] = value
    with refused("finite"):
        pick_threshold(*given)


def test_answers_to_other_rows_are_refused():
    student, teacher, labels = answers()
    for given in ((student[1:], teacher, labels), (student, teacher, labels[1:]), (student[:, :2], teacher, labels)):
        with refused("same rows"):
            coverage_curve(*given)
    with refused("no row has a label"):
        coverage_curve(student, teacher, np.full(len(labels), -100))


def test_the_report_is_of_the_other_split_with_the_mean_latency():
    validation, reported = answers(500, seed=1), answers(600, seed=2, unlabelled=50)
    found = choose_cascade(validation, reported, (2.0, 30.0))
    assert found["threshold"] == pick_threshold(*validation) and found["rows"] == 550
    coverage, accuracy = brute_force(*reported, found["threshold"])
    assert (found["coverage"], found["accuracy"]) == (pytest.approx(coverage), pytest.approx(accuracy))
    assert found["latency_ms"] == pytest.approx(2 + (1 - coverage) * 30)
    assert found["validation"]["coverage"] == pytest.approx(brute_force(*validation, found["threshold"])[0])
    assert choose_cascade(validation, reported, (2.0, None))["latency_ms"] is None
    for point in found["curve"]:
        at = brute_force(*reported, point["threshold"])
        assert (point["coverage"], point["accuracy"]) == (pytest.approx(at[0]), pytest.approx(at[1]))
    assert [round(10 * point["coverage"]) for point in found["curve"]] == list(range(11))
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def pair(make_student, make_teacher, tokenizer, teacher_tokenizer):
    """Student and teacher with their tokenizers; the teacher's labels stand in another order."""
    student, teacher = make_student(initializer_range=1.0).eval(), make_teacher(label_names=LABEL_NAMES[::-1])
    return (student, tokenizer), (teacher, teacher_tokenizer)


@pytest.mark.parametrize("threshold", [0.0, 0.45, 1.0])
def test_the_sure_student_answers_and_the_teacher_the_rest_by_label_name(pair, rows, threshold):
    texts = [*rows[0][:20], "", "  \t", "未"]
    given = CascadeClassifier(*pair, threshold=threshold, batch_size=4)(texts)
    asked = 0
    for text, answer in zip(texts, given, strict=True):
        (model, tokenizer), (teacher, teacher_tokenizer) = pair
        own = softmax(predict_logits(model, tokenizer, [text], 16))[0]
        if own.max() > threshold:
            expected = dict(zip(LABEL_NAMES, own, strict=True))
        else:
            asked += 1
            its_own = softmax(predict_logits(teacher, teacher_tokenizer, [text], 16))[0]
            expected = dict(zip(LABEL_NAMES[::-1], its_own, strict=True))
        assert answer["answered_by"] == ("student" if own.max() > threshold else "teacher")
        assert answer["label"] == max(expected, key=expected.get) and list(answer["probabilities"]) == LABEL_NAMES
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-4)
    assert asked == {0.0: 0, 1.0: len(texts)}.get(threshold, asked) and (threshold != 0.45 or 0 < asked < len(texts))


def test_a_text_gives_an_answer_and_a_list_a_list(pair):
    classify = CascadeClassifier(*pair, threshold=0.5)
    assert classify("球队胜") == classify(["球队胜"])[0]
    assert classify([]) == []


def test_the_teacher_is_asked_once_and_only_what_the_student_leaves(pair, rows):
    asked = []

    def oracle(texts):
        asked.append(texts)
        return np.tile([0.1, 0.2, 0.7], (len(texts), 1))

    given = CascadeClassifier(pair[0], oracle, threshold=0.45)(rows[0])
    left = [text for text, answer in zip(rows[0], given, strict=True) if answer["answered_by"] == "teacher"]
    assert asked == [left] and 0 < len(left) < len(rows[0])
    said = given[rows[0].index(left[0])]["probabilities"]
    assert list(said.values()) == pytest.approx([0.1, 0.2, 0.7], abs=1e-5)


def save_pair(pair, folder):
    for name, (model, tokenizer) in zip(("student", "teacher"), pair, strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "student", folder / "teacher"


def test_the_threshold_travels_in_the_configuration_and_changes_nothing_else(pair, tmp_path, rows):
    student, teacher = save_pair(pair, tmp_path)
    before = {path.name: path.read_bytes() for path in student.iterdir()}
    config = json.loads(before.pop("config.json"))
    with refused("no threshold"):
        CascadeClassifier(student, teacher)
    save_cascade(student, {"threshold": 0.45, "max_seq_length": 3}, pair[0][0].config)
    saved = json.loads((student / "config.json").read_text(encoding="utf-8"))
    assert saved.pop("cascade") == {"threshold": 0.45, "max_seq_length": 3} and saved == config
    assert {path.name: path.read_bytes() for path in student.iterdir() if path.name != "config.json"} == before
    classify = CascadeClassifier(student, teacher)
    assert (classify.threshold, classify.max_length, classify.teacher_max_length) == (0.45, 3, 3)
    assert classify(rows[0]) == CascadeClassifier(*pair, threshold=0.45, max_seq_length=3)(rows[0])
    # Loading and saving keeps it; what else reads the configuration is not disturbed.
    AutoModelForSequenceClassification.from_pretrained(student).save_pretrained(tmp_path / "again")
    assert cascade_settings(AutoConfig.from_pretrained(tmp_path / "again")) == {"threshold": 0.45, "max_seq_length": 3}


def test_the_teachers_name_on_the_hub_is_read_from_the_configuration(pair, tmp_path, monkeypatch):
    student, teacher = save_pair(pair, tmp_path)
    save_cascade(student, {"threshold": 0.5, "teacher": "teacher"})
    monkeypatch.chdir(tmp_path)  # where that name is a folder
    assert CascadeClassifier(student)("球队") == CascadeClassifier(student, teacher)("球队")


@pytest.mark.parametrize(
    "given, found",
    [
        ({"threshold": 1.5}, "0..1"),
        ({"threshold": float("nan")}, "0..1"),
        ({"threshold": "0.5"}, "0..1"),
        ({"threshold": True}, "0..1"),
        ({"threshold": 0.5, "teacher": None}, "no teacher"),
        ({"threshold": 0.5, "teacher": "./nowhere"}, "no such folder"),
        ({"threshold": 0.5, "label_map": "体育=sports"}, "label_map"),
        ({"threshold": 0.5, "teacher": (1, 2)}, "tuple is none"),
        ({"threshold": 0.5, "teacher": "a" * 5000}, "teacher aaa"),
        ({"threshold": 0.5, "teacher": "a\0b"}, "teacher a"),
    ],
)
def test_what_makes_no_cascade_is_refused(pair, given, found):
    with refused(found):
        CascadeClassifier(pair[0], **{"teacher": pair[1], **given})


@pytest.mark.parametrize(
    "name, values",
    [
        ("batch_size", [0, -1, "x", 2.5, True, None, []]),
        ("max_seq_length", [0, -1, "x", 2.5, True, [], 2**31]),
        ("teacher_max_seq_length", [0, -1, "x", 2.5, True, [], 2**31]),
        ("label_map", [{"a": [1]}, {1: 2}, ["a"], 5, "a", "a=b=c"]),
        ("threshold", [-0.1, 1.1, "0.5", [], [0.5], {}, float("inf"), np.float32("nan"), np.array([0.5, 0.6])]),
    ],
)
def test_values_that_are_none_of_their_kind_are_refused(pair, name, values):
    for value in values:
        with refused(name):
            CascadeClassifier(*pair, **{"threshold": 0.5, name: value})


def test_numbers_of_numpy_are_numbers(pair, rows):
    expected = CascadeClassifier(*pair, threshold=0.5, max_seq_length=5, batch_size=3)(rows[0])
    given = {"max_seq_length": np.int64(5), "batch_size": np.int32(3)}
    for number in (np.float32, np.float64, np.float16):
        assert CascadeClassifier(*pair, threshold=number(0.5), **given)(rows[0]) == expected


def read_cascade(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["cascade"]


@pytest.mark.parametrize(
    "cascade",
    [
        *([], 5, 0, "", "0.5", [0.5], True),
        *({"threshold": value} for value in ("0.5", float("nan"), 1.5, -1, [0.5], True, {})),
        *({"threshold": 0.5, "max_seq_length": value} for value in ("5", -1, 0, [], 2.5)),
        *({"threshold": 0.5, "teacher_max_seq_length": value} for value in ("5", -1, 0, [], 2.5)),
        *({"threshold": 0.5, "teacher": value} for value in (5, [], {})),
        *({"threshold": 0.5, "label_map": value} for value in (5, [], {"a": 1})),
    ],
)
def test_a_configuration_of_odd_values_is_refused(pair, tmp_path, cascade):
    student, teacher = save_pair(pair, tmp_path)
    save_cascade(student, cascade)
    with refused("config.json", "python -m kd_trainer.cascade"):
        CascadeClassifier(student, teacher)


def test_a_model_without_its_tokenizer_other_labels_and_a_broken_configuration_are_refused(pair, make_teacher):
    with refused("tokenizer"):
        CascadeClassifier(pair[0][0], pair[1], threshold=0.5)
    with refused("tokenizer"):
        CascadeClassifier(pair[0], pair[1][0], threshold=0.5)
    with refused("teacher has labels"):
        CascadeClassifier(pair[0], (make_teacher(label_names=["a", "b", "c"]), pair[1][1]), threshold=0.5)
    pair[0][0].config.cascade = "0.5"
    with refused("config.json"):
        CascadeClassifier(*pair, threshold=0.5)


def test_pairs_are_refused_by_a_student_of_single_texts(pair):
    with refused("single texts"):
        CascadeClassifier(*pair, threshold=0.5)([("球队", "股市")])


def test_pickled_weights_are_refused_and_not_read(pair, tmp_path):
    student, teacher = save_pair(pair, tmp_path)

    class Boom:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for folder, others in ((student, (student, pair[1])), (teacher, (pair[0], teacher))):
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").unlink()
        torch.save(Boom(), folder / "pytorch_model.bin")
        with refused(folder, "safetensors"):
            CascadeClassifier(*others, threshold=0.5)
        (folder / "model.safetensors").write_bytes(weights)
    assert not (tmp_path / "executed").exists()


def test_the_plot_is_a_picture(tmp_path):
    reported = answers(500, seed=2)
    draw(coverage_curve(*reported), choose_cascade(answers(500, seed=1), reported), tmp_path / "new" / "cascade.png")
    assert (tmp_path / "new" / "cascade.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a distilled student, the flags of its data, the teacher's folder; 360 rows for validation."""
    folder = tmp_path_factory.mktemp("cascade")
    files = []
    for seed, (name, size) in enumerate({"train": 192, "validation": 360, "test": 150}.items()):
        lines = [f"{LABEL_NAMES[label]}\t{text}\n" for text, label in zip(*make_rows(size, seed), strict=True)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        files.append(f"--{name}_file={folder / name}.tsv")
    flags, teacher = [*files, "--max_seq_length=16"], folder / "teacher"
    run_teacher.main([*TEACHER, *flags, *TRAINING, "--num_train_epochs=6", f"--output_dir={teacher}"])
    own = ["--num_train_epochs=2", f"--teacher_name_or_path={teacher}", f"--teacher_cache_dir={folder / 'cache'}"]
    run_distill.main([*flags, *TRAINING, *STUDENT, *own, f"--output_dir={folder / 'student'}"])
    return folder / "student", flags, teacher


def test_a_run_chooses_on_validation_reports_the_test_split_and_keeps_the_threshold(finished):
    folder, flags, teacher_folder = finished
    cascade = read_report(folder)["cascade"]
    splits = [kd_trainer.report.read_scored(folder, is_reported) for is_reported in (False, True)]
    (validation_labels, validation), (labels, reported) = splits
    assert cascade["threshold"] == pick_threshold(validation["distilled"], validation["teacher"], validation_labels)
    expected = brute_force(reported["distilled"], reported["teacher"], labels, cascade["threshold"])
    assert (cascade["coverage"], cascade["accuracy"]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    config = AutoConfig.from_pretrained(folder)
    assert config.cascade == {"threshold": cascade["threshold"], "max_seq_length": 16, "teacher_max_seq_length": 16}
    assert (folder / PLOT).is_file()
    # Asked again, both together give just that accuracy.
    texts, ids = make_rows(150, 2)
    given = CascadeClassifier(folder, teacher_folder)(texts)
    accuracy = np.mean([one["label"] == LABEL_NAMES[label] for one, label in zip(given, ids, strict=True)])
    assert accuracy == pytest.approx(cascade["accuracy"])


def test_the_command_on_a_finished_student_chooses_the_same(finished, tmp_path, capsys):
    folder, flags, teacher_folder = finished
    shutil.copytree(folder, tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text(encoding="utf-8"))
    chosen = config.pop("cascade")
    (tmp_path / "student" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    main([str(tmp_path / "student"), f"--teacher={teacher_folder}", *flags])
    assert "cascade: the student answers" in capsys.readouterr().out
    saved = AutoConfig.from_pretrained(tmp_path / "student").cascade
    assert saved.pop("threshold") == pytest.approx(chosen.pop("threshold"), abs=1e-6) and saved == chosen
    report, found = read_report(folder)["cascade"], read_report(tmp_path / "student")["cascade"]
    assert (found["coverage"], found["accuracy"]) == (report["coverage"], report["accuracy"])


def test_the_command_refuses_what_it_cannot_use(finished, tmp_path):
    folder, flags, teacher_folder = finished
    named = [str(folder), f"--teacher={teacher_folder}"]
    with refused("--validation_file"):
        main([*named, flags[-2]])
    with refused("no such folder"):
        main([str(tmp_path / "nowhere"), f"--teacher={teacher_folder}", *flags])
    with refused("--teacher"):
        main([str(folder), *flags])
    with refused("--margin"):
        main([*named, *flags, "--margin=-1"])
    (tmp_path / "few.tsv").write_text("label\ttext\n体育\t球队\n财经\t股市\n", encoding="utf-8")
    before = (folder / "config.json").read_bytes()
    with refused("2 labelled rows"):
        main([*named, *flags, f"--validation_file={tmp_path / 'few.tsv'}"])
    assert (folder / "config.json").read_bytes() == before


def test_a_student_is_not_its_own_teacher(finished, tmp_path, monkeypatch):
    folder, flags, _ = finished
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    for same in (folder, tmp_path / "link", folder / ".." / "student", "student", "student/"):
        with refused("teacher", "the student itself"):
            main([str(folder), f"--teacher={same}", *flags])
    with refused("the student itself"):
        main([str(tmp_path / "link"), f"--teacher={folder}", *flags])
    for student, same in ((folder, folder), (str(folder), tmp_path / "link"), (str(tmp_path / "link"), str(folder))):
        with refused("teacher", "the student itself"):
            CascadeClassifier(student, same, threshold=0.5)


def test_a_changed_copy_may_ask_the_model_that_it_was(pair, tmp_path):
    _, teacher = save_pair(pair, tmp_path)
    copy = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        copy.classifier.weight.zero_()
    answer = CascadeClassifier((copy, pair[1][1]), teacher, threshold=1.0)("球队")
    assert answer["answered_by"] == "teacher" and copy.name_or_path == str(teacher)


def test_the_command_is_refused_while_something_else_writes_into_the_folder(finished, tmp_path):
    folder, flags, teacher = finished
    folder = shutil.copytree(folder, tmp_path / "student")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with held(folder), refused("another run writes into it"):
        main([str(folder), f"--teacher={teacher}", *flags])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_threshold_is_not_judged_on_the_texts_that_chose_it(finished, tmp_path):
    folder, flags, teacher_folder = finished
    named, file = [str(folder), f"--teacher={teacher_folder}", *flags], folder.parent / "validation.tsv"
    (tmp_path / "link.tsv").symlink_to(file)
    shutil.copy(file, tmp_path / "copy.tsv")
    before = (folder / "config.json").read_bytes()
    for same in (file, tmp_path / "link.tsv", tmp_path / "copy.tsv"):
        with refused("--validation_file", "--test_file", "other texts"):
            main([*named, f"--test_file={same}"])
    with refused("--validation_file", "--test_file", "other texts"):  # of which each takes other rows
        main([*named, f"--test_file={file}", "--max_predict_samples=310"])
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("flag", ["--teacher_max_seq_length", "--max_seq_length"])
@pytest.mark.parametrize("value", ["-5", "0", str(2**31)])
def test_a_length_that_is_none_is_refused(finished, flag, value):
    folder, flags, teacher_folder = finished
    with refused(flag.removeprefix("--"), value):
        main([str(folder), f"--teacher={teacher_folder}", *flags, f"{flag}={value}"])


def test_what_cannot_be_written_at_the_end_is_refused_before(finished, tmp_path):
    folder, flags, teacher_folder = finished
    shutil.copytree(folder, tmp_path / "student")
    named = [str(tmp_path / "student"), f"--teacher={teacher_folder}", *flags]
    config = (tmp_path / "student" / "config.json").read_bytes()
    shutil.rmtree(tmp_path / "student" / "plots", ignore_errors=True)
    (tmp_path / "student" / "plots").write_text("mine")
    with refused("plots", "move it away"):
        main(named)
    (tmp_path / "student" / "plots").unlink()
    report = read_report(tmp_path / "student")
    for damaged in ("[]", "{", json.dumps({**report, "settings": []}), json.dumps({**report, "distilled": "x"})):
        (tmp_path / "student" / "report.json").write_text(damaged)
        with refused(tmp_path / "student", "report.json"):
            main(named)
        assert (tmp_path / "student" / "report.json").read_text() == damaged
    assert (tmp_path / "student" / "config.json").read_bytes() == config


def test_the_command_replaces_a_damaged_cascade(finished, tmp_path):
    folder, flags, teacher_folder = finished
    shutil.copytree(folder, tmp_path / "student")
    expected = read_cascade(folder)
    save_cascade(tmp_path / "student", {"threshold": "x", "max_seq_length": [], "label_map": 5})
    with refused("config.json", "python -m kd_trainer.cascade"):
        CascadeClassifier(tmp_path / "student", teacher_folder)
    main([str(tmp_path / "student"), f"--teacher={teacher_folder}", *flags])
    found = read_cascade(tmp_path / "student")
    assert found.pop("threshold") == pytest.approx(expected.pop("threshold"), abs=1e-6) and found == expected


def test_files_and_texts_are_labelled_by_both(finished, tmp_path, capsys):
    folder, _, teacher_folder = finished
    texts = [*make_rows(30, 5)[0], "", '一, "二"']
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
    )
    flags = [
        f"--model_name_or_path={folder}",
        f"--cascade_teacher={teacher_folder}",
        "--use_cpu",
        "--max_seq_length=16",
    ]
    run_student.main(
        [*flags, f"--predict_file={tmp_path / 'texts.jsonl'}", f"--predict_output={tmp_path / 'out.jsonl'}"]
    )
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = CascadeClassifier(folder, teacher_folder)(texts)
    assert written == [{"text": text, **answer} for text, answer in zip(texts, expected, strict=True)]
    capsys.readouterr()
    run_student.main([*flags, f"--predict_text={texts[0]}"])
    assert json.loads(capsys.readouterr().out) == written[0]
    with refused("--cascade_teacher", "--predict_file"):
        run_student.main([*flags, "--do_predict", "--output_dir=x", "--test_file=x.tsv"])


def test_training_goes_on_without_the_threshold_of_other_weights(finished, tmp_path):
    folder, flags, _ = finished
    run_student.main(
        [*flags, *TRAINING, "--max_steps=1", f"--model_name_or_path={folder}", f"--output_dir={tmp_path / 's'}"]
    )
    assert "cascade" not in json.loads((tmp_path / "s" / "config.json").read_text(encoding="utf-8"))
