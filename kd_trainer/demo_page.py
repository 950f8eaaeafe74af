"""The page of [`demo`] in Gradio: what stands where, and what happens when."""

import logging
import shutil
import tempfile
import time
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from .demo_html import STYLE, escape, render_answers, render_counts, render_refusal
from .demo_models import MOST_BYTES, MOST_CHARACTERS, MOST_ROWS
from .demo_words import LANGUAGES, Refusal, preferred_language, say
from .files import TEXT_COLUMNS

logger = logging.getLogger(__name__)

MOST_NAMES = 20  # labels above the text

# The parts of gradio's own page that are asked of no one else.
THEME = gr.themes.Default(
    font=("system-ui", "Noto Sans CJK SC", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)
CSS = f"""
{STYLE}
.gradio-container {{ max-width: 60rem !important; margin: 0 auto !important; }}
/* gradio draws a radio button that is chosen and under the mouse as an empty one. */
#kd-language input:checked {{ background-color: var(--checkbox-background-color-selected) !important; }}
#kd-answer, #kd-outcome, #kd-answer .html-container, #kd-outcome .html-container {{ padding: 0 !important; }}
.gradio-container :focus-visible {{ outline: 3px solid #2563eb !important; outline-offset: 2px !important; }}
"""
SET_LANGUAGE = "(language) => { document.documentElement.lang = language; return language; }"


def sources_of_others(app):
    """
    Lets a browser load nothing for the page but from its own server.

    Args:
        app: An ASGI application.
    """
    policy = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'"

    async def answer(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", policy)]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"same-origin")]}
            await send(message)

        await app(scope, receive, send_with_policy if scope["type"] == "http" else send)

    return answer


class Page:
    """
    The page of one student.

    Args:
        demo ([`Demo`]): The models.
        names (`tuple[str, str | None]`): What the student and the teacher are called.
        examples (`list[str]` or `list[tuple[str, str]]`): Texts to pick.
    """

    def __init__(self, demo, names, examples=()):
        self.demo, self.names = demo, names
        self.examples = [list(text) if isinstance(text, tuple) else [text] for text in examples]

    def build(self):
        """The `gradio.Blocks`."""
        with gr.Blocks(title=say("title", "en"), analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            answered, labelled = gr.State(), gr.State()
            language = gr.Radio(
                [(word, key) for key, word in LANGUAGES.items()],
                value="en",
                elem_id="kd-language",
                container=False,
                label=" / ".join(say("language", key) for key in LANGUAGES),
            )
            intro = gr.Markdown(self.intro("en"))
            with gr.Tab(say("one_tab", "en"), elem_id="kd-one") as one:
                boxes = [gr.Textbox(**look, lines=1, max_lines=6, elem_id=f"kd-text-{side}")
                         for side, look in enumerate(self.box_looks("en"))]  # fmt: skip
                classify = gr.Button(say("classify", "en"), variant="primary", elem_id="kd-classify")
                picks = gr.Dataset(
                    components=boxes, samples=self.examples, visible=bool(self.examples), label=say("examples", "en"),
                    headers=self.headers("en"), elem_id="kd-examples",
                )  # fmt: skip
                answer = gr.HTML(elem_id="kd-answer", padding=False)
            with gr.Tab(say("many_tab", "en"), elem_id="kd-many") as many:
                rules = gr.Markdown(self.rules("en"))
                upload = gr.UploadButton(say("upload", "en"), variant="primary", elem_id="kd-upload")
                outcome = gr.HTML(elem_id="kd-outcome", padding=False)
                download = gr.DownloadButton(say("download", "en"), visible=False, elem_id="kd-download")

            shown = [intro, one, many, *boxes, classify, picks, rules, upload, download, answer, outcome]

            def speak(chosen, last, file):
                return [
                    self.intro(chosen),
                    gr.Tab(label=say("one_tab", chosen)),
                    gr.Tab(label=say("many_tab", chosen)),
                    *(gr.Textbox(**look) for look in self.box_looks(chosen)),
                    gr.Button(say("classify", chosen)),
                    gr.Dataset(label=say("examples", chosen), headers=self.headers(chosen)),
                    self.rules(chosen),
                    gr.UploadButton(say("upload", chosen)),
                    gr.DownloadButton(say("download", chosen)),
                    self.render_answer(last, chosen),
                    self.render_file(file, chosen),
                ]

            def greet(request: gr.Request):
                chosen = preferred_language(request.headers.get("accept-language"))
                return [chosen, *speak(chosen, None, None)]

            private = {"api_visibility": "private"}
            blocks.load(greet, None, [language, *shown], show_progress="hidden", **private).then(
                None, language, language, js=SET_LANGUAGE, **private
            )
            language.input(speak, [language, answered, labelled], shown, show_progress="hidden", **private).then(
                None, language, language, js=SET_LANGUAGE, **private
            )
            outputs = [answered, answer]
            gr.on(
                [classify.click, *(box.submit for box in boxes)],
                self.answer, [language, *boxes], outputs, show_progress="minimal", **private,
            )  # fmt: skip
            picks.click(lambda sample: sample if len(boxes) > 1 else sample[0], picks, boxes, **private).then(
                self.answer, [language, *boxes], outputs, show_progress="minimal", **private
            )
            upload.upload(
                self.label, [language, upload], [labelled, outcome, download],
                show_progress="minimal", show_progress_on=outcome, **private,
            )  # fmt: skip
        return blocks

    def intro(self, language):
        """Which models these are."""
        student, teacher = (None if name is None else escape(name) for name in self.names)
        beside = "" if teacher is None else say("beside_teacher", language, teacher=teacher)
        more = ["…"] if len(self.demo.label_names) > MOST_NAMES else []
        names = [*(escape(name) for name in self.demo.label_names[:MOST_NAMES]), *more]
        labels = say("comma", language).join(names)
        said = say("intro", language, student=student, teacher=beside, labels=labels)
        return f"# {say('title', language)}\n\n{said}"

    def rules(self, language):
        """What a file must be like."""
        demo = self.demo
        names = TEXT_COLUMNS if demo.text_column is None else (demo.text_column,)
        columns = say("or", language).join(f"`{name}`" for name in names)
        if demo.reads_pairs:
            columns += f"{say('and', language)}`{demo.text_pair_column}`"
        return say(
            "many_intro", language, columns=columns, megabytes=MOST_BYTES // 2**20, rows=f"{MOST_ROWS:,}",
            characters=f"{MOST_CHARACTERS:,}", limit=demo.student.max_length,
        )  # fmt: skip

    def headers(self, language):
        """Names of the text boxes."""
        return [say(key, language) for key in (("first_text", "second_text") if self.demo.reads_pairs else ("text",))]

    def box_looks(self, language):
        """Label and placeholder of every text box, as keyword arguments."""
        return [{"label": name, "placeholder": say("text_hint", language)} for name in self.headers(language)]

    def answer(self, language, *texts):
        """What happens on Enter: what is kept for another language, and the HTML."""
        try:
            found = self.demo.answers(list(texts))
        except Refusal as refusal:
            found = refusal
        except Exception:  # the page's visitor is told, the terminal knows why
            logger.exception("a text could not be answered")
            found = Refusal("failed")
        return found, self.render_answer(found, language)

    def render_answer(self, found, language):
        """HTML of what [`answer`] has found."""
        if found is None or isinstance(found, Refusal):
            return "" if found is None else render_refusal(found, language)
        return render_answers(*found, self.demo.label_names, language, self.demo.student.has_ngrams)

    def label(self, language, path):
        """What happens when a file arrives: what is kept, the HTML, the button to download."""
        # Where gradio serves files from, and removes them after an hour.
        folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
        written = None
        try:
            if path is None:
                raise Refusal("no_file")
            source, start = Path(path), time.perf_counter()
            written = folder / f"{source.stem}-labelled.csv"
            counts = self.demo.label_file(source, written)
            found = source.name, counts, time.perf_counter() - start
        except Refusal as refusal:
            found, written = refusal, None
        except Exception:
            logger.exception("a file could not be labelled")
            found, written = Refusal("failed"), None
        finally:
            if path is not None:
                Path(path).unlink(missing_ok=True)  # a visitor's texts are not kept
        if written is None:
            shutil.rmtree(folder)
        value = None if written is None else str(written)
        button = gr.DownloadButton(say("download", language), value=value, visible=written is not None)
        return found, self.render_file(found, language), button

    def render_file(self, found, language):
        """HTML of what [`label`] has found."""
        if found is None or isinstance(found, Refusal):
            return "" if found is None else render_refusal(found, language)
        name, counts, seconds = found
        return render_counts(name, counts, self.demo.label_names, seconds, language)


def serve(page, host, port, share=False, guarded=True):
    """
    Starts the page.

    Args:
        page ([`Page`]): What to show.
        host (`str`), port (`int`): Where to listen; port 0 for any that is free.
        share (`bool`, *optional*): Whether to ask gradio for a public link.
        guarded (`bool`, *optional*): Whether browsers are told to load nothing from elsewhere.

    Returns:
        `tuple[gradio.Blocks, str]`: The running page, which `close()` ends, and its address.

    Raises:
        `OSError`: When the port is taken.
    """
    from starlette.middleware import Middleware

    blocks = page.build().queue(max_size=64)
    _, address, link = blocks.launch(
        server_name=host, server_port=port, share=share, quiet=True, prevent_thread_lock=True, show_error=False,
        footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, enable_monitoring=False, pwa=False,
        max_file_size=4 * MOST_BYTES, theme=THEME, css=CSS,
        app_kwargs={"middleware": [Middleware(sources_of_others)]} if guarded else None,
    )  # fmt: skip
    return blocks, link or address
