"""Phrases are split by the sentence they are cut of, compared with a search of strings."""

import sys

import pytest
from conftest import load_recipe_script, refused

WORDS = "a film of great wit and little heart told by people who never once look at each other".split()


@pytest.fixture(scope="module")
def sentences():
    return load_recipe_script("sst2/sentences.py")


@pytest.fixture(scope="module")
def rows():
    """Sentences of ten words and two of three, each with the phrases that begin or end it; some share phrases."""
    whole = [
        " ".join(WORDS[(number * 5 + step * (number % 3 + 1)) % len(WORDS)] for step in range(10))
        for number in range(12)
    ]
    whole = list(dict.fromkeys(whole)) + ["told by who", "who never heart"]
    texts = []
    for text in whole:
        words = text.split()
        texts += [" ".join(words[:end]) for end in range(1, len(words))] + [" ".join(words[1:]) + " ", text + " "]
    return [(str(len(text) % 2), text) for text in texts]


def contains(sentence, phrase):
    return f" {' '.join(phrase.split())} " in f" {' '.join(sentence.split())} "


def test_no_phrase_of_a_held_out_sentence_alone_is_trained_on(sentences, rows):
    train, held = sentences.hold_out(rows, count=4, shortest=5, seed=0)
    assert len(held) == 4 and all(len(text.split()) == 10 for _, text in held)
    texts = list(dict.fromkeys(text for _, text in rows))
    whole = [
        text for text in texts if not any(contains(other, text) and other.split() != text.split() for other in texts)
    ]
    kept = [text for text in whole if text not in {text for _, text in held}]
    assert set(whole) >= {text for _, text in held} and len(kept) == len(whole) - 4
    assert train == [row for row in rows if any(contains(sentence, row[1]) for sentence in kept)]
    lost = [row for row in rows if row not in train and row not in held]
    assert lost and any(contains(text, phrase) for _, phrase in train for _, text in held)


def test_a_seed_is_one_split_and_another_seed_another(sentences, rows):
    first, again, other = (sentences.hold_out(rows, count=4, shortest=5, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_the_script_writes_what_the_trainers_read(sentences, rows, tmp_path, monkeypatch):
    source, output = tmp_path / "train.tsv", tmp_path / "out"
    source.write_text("label\tsentence\n" + "".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    table = tmp_path / "reviews.csv"
    table.write_text('\ufeff"1","it is , "" say ""  good . \nbad\n"\n"-1","it is , "" say "" good .\nno good at all"\n')
    command = ["sentences.py", f"--train_file={source}", "--sentences=4", "--shortest=5", f"--output_dir={output}"]
    monkeypatch.setattr(sys, "argv", [*command, f"--reviews={table}"])
    sentences.main()
    reviews = (output / "reviews.txt").read_text(encoding="utf-8")
    assert reviews == 'it is , " say " good .\nno good at all\n'
    train, held = sentences.hold_out(rows, count=4, shortest=5, seed=0)
    for name, part in (("train", train), ("validation", held)):
        lines = (output / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        assert lines == ["label\tsentence", *("\t".join(row) for row in part)]
    variants = (output / "variants.txt").read_text(encoding="utf-8").splitlines()
    assert len(variants) == len(set(variants)) > len(train)
    known = {word for _, text in train for word in text.split()}
    assert {word for text in variants for word in text.split()} <= known


def test_nothing_is_written_over(sentences, rows, tmp_path):
    source = tmp_path / "train.tsv"
    source.write_text("label\tsentence\n" + "".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    before = source.read_bytes()
    command = [f"--train_file={source}", "--sentences=4", "--shortest=5"]
    with refused("train.tsv", "says something else"):
        sentences.main([*command, f"--output_dir={tmp_path}"])
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == [source]
    for _ in range(2):  # the same again is no loss
        sentences.main([*command, f"--output_dir={tmp_path / 'out'}"])


@pytest.mark.parametrize(
    "content, flags, parts",
    [
        ("sentence\tlabel\na b\t1\n", [], ("header", "'sentence")),
        ("label\tsentence\n1\ta\tb\n", [], ("label<TAB>sentence",)),
        ("", [], ("header",)),
        ("label\tsentence\n1\ta b\n", [], ("would be empty",)),
        ("label\tsentence\n1\ta b\n", ["--sentences=-5"], ("--sentences is -5",)),
        ("label\tsentence\n1\ta b\n", ["--augment", "foo"], ("--augment foo",)),
        ("label\tsentence\n1\tcaf\xe9\n", [], ("not UTF-8 at byte 20",)),
    ],
)
def test_other_files_and_numbers_are_refused(sentences, tmp_path, content, flags, parts):
    source = tmp_path / "train.tsv"
    source.write_bytes(content.encode("latin-1"))
    with refused(*parts):
        sentences.main([f"--train_file={source}", f"--output_dir={tmp_path / 'out'}", *flags])
    assert not (tmp_path / "out").exists()


def test_reviews_are_read_from_a_folder_too(sentences, tmp_path):
    (tmp_path / "neg").mkdir()
    (tmp_path / "neg" / "b.txt").write_text("so bad \nso  long")
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "a.md").write_text("nothing\n")
    assert sentences.read_reviews(tmp_path) == ["good", "so bad", "so long"]


def test_reviews_of_imdb_are_cut_as_sst_cuts_and_snippets_left_out(sentences, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        'text,label,source\n"It doesn\'t work.<br /><br />I can\'t say it\'s (quite) Bad... ""No.""\tWhy?",0,imdb\n'
        '"""So they say at last!""<br />Too short",1,imdb\n'
        "a snippet that SST was made of,1,rotten_tomatoes\nIt doesn't work. It does not work at all!,1,imdb\n",
        encoding="utf-8",
    )
    drawn = sentences.read_imdb(table, 9, seed=0)
    assert set(drawn) == {
        "it does n't work .",
        "i ca n't say it 's ( quite ) bad ...",
        "it does not work at all !",
        '" so they say at last !',
    }
    assert sentences.read_imdb(table, 2, seed=0) == drawn[:2]
    assert len({tuple(sentences.read_imdb(table, 9, seed=seed)) for seed in range(9)}) > 1


def test_a_table_of_another_kind_and_a_missing_one_are_named(sentences, tmp_path, monkeypatch):
    table = tmp_path / "table.csv"
    table.write_text("review,label\ngood,1\n")
    with refused("table.csv", "text and source", "'review'"):
        sentences.read_imdb(table, 9, seed=0)
    monkeypatch.setattr(sys, "argv", ["sentences.py", f"--train_file={table}", f"--imdb={tmp_path / 'none.csv'}"])
    with refused("none.csv", "no such file"):
        sentences.main()
