"""What stands in a card is shown as it is (a Markdown parser says so), and an edited card is known as one."""

from html.parser import HTMLParser

import pytest
from conftest import refused
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from kd_trainer.card_file import escape, is_unchanged, read_card, write_card_file

HOSTILE = [
    "a|b",
    "[click](http://evil.example) ![x](y.png)",
    "<script>alert(1)</script> &amp; <!-- -->",
    "`code` **bold** _it_ ~~no~~ $$x^2$$ \\(y\\)",
    "# heading",
    "- list",
    "1. list",
    "> quote",
    "---",
    "``` fence",
    "www.evil.example https://evil.example me@evil.example @user #1",
    "&#42; &lt;b&gt; \\* \\",
    "体育 | 财经 😀 “quoted”",
    ":smile: [^1] [ ] = + {{ x }} {% y %}",
]


class Shown(HTMLParser):
    """The text of HTML, and the tags in it."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags = "", set()
        self.feed(html)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


def render(markdown):
    return Shown(MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(markdown))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "frame, tags",
    [
        ("{}", {"p"}),
        ("**{}** x", {"p", "strong"}),
        ("- {}", {"ul", "li"}),
        ("# {}", {"h1"}),
        ("| head |\n|---|\n| {} |", {"table", "thead", "tbody", "tr", "th", "td"}),
    ],
)
def test_a_text_is_shown_as_it_is_wherever_it_stands(text, frame, tags):
    shown = render(frame.format(escape(text)))
    assert " ".join(shown.text.replace("head", "", 1 if "head |" in frame else 0).split()).removesuffix(
        " x" if frame.endswith(" x") else ""
    ) == " ".join(text.split())
    assert shown.tags == tags


def test_nothing_that_a_hub_links_by_itself_is_left():
    for text in HOSTILE:
        escaped = escape(text)
        assert not {"://", "www.", "@", "<", "$", "`"} & {
            part for part in ("://", "www.", "@", "<", "$", "`") if part in escaped
        }


def test_controls_are_spaces_and_what_turns_the_direction_is_gone():
    assert escape("a\nb\x00c\x1b[31m d\u202ee\u2028f\r\n") == "a b c &#91;31m d e f"
    assert escape("  \n ") == ""


DATA = ModelCardData(library_name="transformers", tags=["kd_trainer"], model_name="m")


def test_a_card_is_unchanged_until_its_text_is_edited(tmp_path):
    path = tmp_path / "README.md"
    assert not is_unchanged(path) and not is_unchanged(tmp_path)
    write_card_file(path, DATA, "# Title\n\ntext")
    assert is_unchanged(path) and ModelCard.load(path).data.library_name == "transformers"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\n", b"\r\n"))  # as some editors and git save it
    assert is_unchanged(path)
    write_card_file(path, DATA, "# Title\n\nnew text")
    assert is_unchanged(path) and "new text" in path.read_text()
    path.write_text(path.read_text().replace("new text", "my text"))
    assert not is_unchanged(path)
    with refused(path, "--overwrite"):
        write_card_file(path, DATA, "# Title")
    assert "my text" in path.read_text()
    write_card_file(path, DATA, "# Title", overwrite=True)
    assert is_unchanged(path) and "my text" not in path.read_text()
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "content", [b"my own words", b"---\nlicense: mit\n---\nmine", b"---\n[\n---\nx", b"\xff\xfe", b""]
)
def test_a_card_of_somebody_else_is_not_overwritten(tmp_path, content):
    path = tmp_path / "README.md"
    path.write_bytes(content)
    assert not is_unchanged(path)
    with refused(path, "--overwrite"):
        write_card_file(path, DATA, "# Title")
    assert path.read_bytes() == content
    write_card_file(path, DATA, "# Title", overwrite=True)
    assert is_unchanged(path)


def test_metadata_that_a_person_has_added_stay(tmp_path):
    path = tmp_path / "README.md"
    write_card_file(path, ModelCardData(base_model="a/b", tags=["kd_trainer"], model_name="m"), "# Title")
    path.write_text(path.read_text().replace("tags:\n", "license: mit\nlanguage: zh\ntags:\n- news\n"))
    assert is_unchanged(path), "metadata may be added without the card counting as edited"
    write_card_file(path, DATA, "# New")
    data = read_card(path).data
    assert data.license == "mit" and data.language == "zh" and set(data.tags) == {"news", "kd_trainer"}
    assert data.base_model is None, "what follows from the run is the new run's"
