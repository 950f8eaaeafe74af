"""What the models answer, as HTML in which every text of a visitor or a model is escaped."""

import html
import unicodedata

from .demo_words import say

MOST_LABELS = 10  # shown
MOST_MARKS = 5  # numbered

# Colours are gradio's own, so that they follow its dark mode. What they say is also said by a number, a sign or a word.
STYLE = """
.kd-result { color: var(--body-text-color); overflow-wrap: anywhere; }
.kd-result h3 { font-size: 1rem; font-weight: 600; margin: 1.1rem 0 .4rem; }
.kd-models { display: flex; flex-wrap: wrap; gap: .6rem; align-items: stretch; }
.kd-model { flex: 1 1 12rem; border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem .8rem; }
.kd-model b { display: block; font-size: 1.25rem; }
.kd-verdict { margin: .7rem 0 0; font-weight: 600; }
.kd-result table { width: 100%; border-collapse: collapse; table-layout: fixed; }
.kd-result table, .kd-result tr, .kd-result th, .kd-result td { border: 0 !important; }
.kd-result th, .kd-result td { padding: .15rem .5rem .15rem 0 !important; text-align: left; font-weight: 400; }
.kd-result thead th { font-weight: 600; }
.kd-result .kd-name { width: 28%; }
.kd-bar { display: flex; align-items: center; gap: .5rem; }
.kd-track { flex: 1 1 auto; height: .8rem; border-radius: 4px; background: var(--border-color-primary); }
.kd-fill { display: block; height: 100%; min-width: 2px; border-radius: 4px; background: #2563eb; }
.kd-teacher .kd-fill { background: #b45309; }
.kd-number { flex: 0 0 4.2em; text-align: right; font-variant-numeric: tabular-nums; }
.kd-best { font-weight: 700 !important; }
.kd-text { white-space: pre-wrap; line-height: 2; font-size: 1.1rem; margin: .2rem 0; unicode-bidi: isolate; }
.kd-text mark { color: inherit; border-radius: 3px; padding: .1em 0; }
.kd-text .kd-most { font-weight: 700; }
.kd-text .kd-most u { text-decoration: underline; text-underline-offset: .2em; }
.kd-text sup { font-size: .65em; font-weight: 400; margin-left: .1em; }
.kd-result ol { margin: 0; padding-left: 1.4rem; list-style: decimal; }
.kd-unread, .kd-note { opacity: .75; font-size: .9rem; }
.kd-note { margin: 1rem 0 0; }
.kd-hidden { font-size: .7em; border: 1px dashed currentColor; border-radius: 3px; padding: 0 .15em; }
.kd-warning, .kd-error { border-left: 4px solid #b45309; padding: .4rem .7rem; margin: .6rem 0; }
.kd-error { border-color: #dc2626; font-weight: 600; }
"""


def escape(text):
    """
    A text as HTML. What has no shape, or turns the direction of what follows, is named instead.

    Example:

    ```python
    >>> escape("<b>")
    '&lt;b&gt;'

    ```
    """
    shown = []
    for character in text:
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
            shown.append(html.escape(character))
        else:
            shown.append(f'<span class="kd-hidden">U+{ord(character):04X}</span>')
    return "".join(shown)


def percent(share):
    """
    A probability in percent; what is not certain is not shown as 100 or 0.

    Example:

    ```python
    >>> percent(0.9999), percent(1.0), percent(0.123)
    ('> 99.9 %', '100.0 %', '12.3 %')

    ```
    """
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def section(body, language, role="status"):
    """A part of the page that a screen reader says when it changes."""
    return f'<section class="kd-result" lang="{language}" role="{role}">{body}</section>'


def render_refusal(refusal, language):
    """A [`Refusal`] in words."""
    values = dict(refusal.values)
    if values.get("model") in ("student", "teacher"):
        values["model"] = model_word(values["model"], language)
    said = say(refusal.key, language, **values)
    return section(f'<p class="kd-error">{escape(said)}</p>', language, "alert")


def model_word(role, language):
    """`student` or `teacher` inside a sentence."""
    return say(role, language).lower()


def render_answers(text, answers, label_names, language, has_ngrams=False):
    """
    Everything about one text.

    Args:
        text (`str` or `tuple[str, str]`): What the models were given.
        answers (`list[Answer]`): The student's first.
        label_names (`list[str]`): In the order of the probabilities.
        language (`str`): Of the page.
        has_ngrams (`bool`): Whether the student has a branch of n-grams.

    Returns:
        `str`.
    """
    cards = "".join(
        f'<div class="kd-model">{say(answer.role, language)}<b>{escape(label_names[answer.label])}</b>'
        f"{percent(max(answer.probabilities))} · "
        f"{say('time', language, milliseconds=f'{answer.milliseconds:.1f}')}</div>"
        for answer in answers
    )
    parts = [f'<div class="kd-models">{cards}</div>']
    if len(answers) > 1:
        agree = answers[0].label == answers[1].label
        sign, key = ("✓", "agree") if agree else ("≠", "differ")
        parts.append(f'<p class="kd-verdict" data-agree="{str(agree).lower()}">{sign} {say(key, language)}</p>')
    parts += [render_cut(text, answer, language) for answer in answers if answer.cut]
    parts.append(f"<h3>{say('probabilities', language)}</h3>{render_bars(answers, label_names, language)}")
    parts += [render_spans(text, answer, label_names, language) for answer in answers]
    ngrams = say("mattered_ngrams", language) if has_ngrams else ""
    parts.append(f'<p class="kd-note">{say("mattered_note", language, ngrams=ngrams)} {say("time_note", language)}</p>')
    return section("".join(parts), language)


def render_cut(text, answer, language):
    """That a model has not read a text to its end."""
    model = model_word(answer.role, language)
    if isinstance(text, tuple):
        said = say("cut_pair", language, model=model, limit=answer.limit)
    else:
        spans = answer.spans[0]
        read = spans[-1].end - spans[0].start if spans else 0
        said = say("cut", language, model=model, read=f"{read:,}", length=f"{len(text):,}", limit=answer.limit)
    return f'<p class="kd-warning">{escape(said)}</p>'


def render_bars(answers, label_names, language):
    """A table of the labels, the student's likeliest first, with a bar for each model."""
    order = sorted(range(len(label_names)), key=lambda label: -answers[0].probabilities[label])
    shown = order[:MOST_LABELS]
    # What the teacher says must be seen, however unlikely the student finds it.
    shown += [answer.label for answer in answers if answer.label not in shown]
    head = "".join(f'<th scope="col">{say(answer.role, language)}</th>' for answer in answers)
    rows = []
    for label in shown:
        cells = "".join(
            f'<td class="kd-{answer.role}"><div class="kd-bar"><span class="kd-track" aria-hidden="true"><span '
            f'class="kd-fill" style="width:{100 * answer.probabilities[label]:.2f}%"></span></span><span '
            f'class="kd-number{" kd-best" if label == answer.label else ""}">'
            f"{percent(answer.probabilities[label])}</span></div></td>"
            for answer in answers
        )
        best = " kd-best" if label == answers[0].label else ""
        rows.append(f'<tr><th scope="row" class="kd-name{best}">{escape(label_names[label])}</th>{cells}</tr>')
    more = len(label_names) - len(shown)
    note = f'<p class="kd-note">{say("more_labels", language, count=more)}</p>' if more else ""
    return (
        f'<table><thead><tr><th scope="col" class="kd-name">{say("label", language)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{note}"
    )


def render_spans(text, answer, label_names, language):
    """The text with what mattered most marked, and a list of that."""
    if answer.spans is None:
        return f'<p class="kd-note">{say("no_attribution", language, model=model_word(answer.role, language))}</p>'
    texts = text if isinstance(text, tuple) else (text,)
    places = [(side, number) for side, spans in enumerate(answer.spans) for number in range(len(spans))]
    size = {place: abs(answer.spans[place[0]][place[1]].contribution) for place in places}
    largest = max(size.values(), default=0.0)
    visible = [place for place in places if size[place] > 0]
    ranked = sorted(visible, key=lambda place: -size[place])[:MOST_MARKS]
    rank = {place: number for number, place in enumerate(ranked, start=1)}
    lines = []
    for side, (given, spans) in enumerate(zip(texts, answer.spans, strict=True)):
        ranks = {number: rank[place] for place in ranked for number in [place[1]] if place[0] == side}
        body = mark_text(given, spans, ranks, largest, answer.cut, language)
        lines.append(f'<p class="kd-text" dir="auto">{body}</p>')
    items = []
    for side, number in ranked:
        span = answer.spans[side][number]
        words = escape(texts[side][span.start : span.end])
        items.append(f"<li><bdi>“{words}”</bdi> {signed(span.contribution)}</li>")
    heading = say("mattered", language, model=model_word(answer.role, language), label=label_names[answer.label])
    return f"<h3>{escape(heading)}</h3>{''.join(lines)}<ol>{''.join(items)}</ol>"


def sign(span):
    """Whether a span speaks for the label or against it."""
    return "+" if span.contribution > 0 else "−"


def signed(contribution):
    """
    A contribution as it is written.

    Example:

    ```python
    >>> signed(0.123), signed(-0.00123)
    ('+0.12', '−0.001')

    ```
    """
    size = abs(contribution)
    return f"{'+' if contribution > 0 else '−'}{size:{'.2f' if size >= 0.01 else '.1g'}}"


def mark_text(text, spans, ranks, largest, cut, language):
    """
    A text with its marks.

    Args:
        text (`str`): All of it.
        spans (`list[Span]`): What the model has read of it.
        ranks (`dict[int, int]`): Number by size of those spans that are numbered.
        largest (`float`): Contribution that has the full colour.
        cut (`bool`): Whether what stands behind the last span was not read.
        language (`str`): Of the page.

    Returns:
        `str`.
    """
    parts, end = [], 0
    for number, span in enumerate(spans):
        parts.append(escape(text[end : span.start]))
        words, end = escape(text[span.start : span.end]), span.end
        share = 0.0 if largest == 0 else abs(span.contribution) / largest
        colour = "37, 99, 235" if span.contribution > 0 else "220, 38, 38"
        style = f'style="background: rgba({colour}, {0.45 * share:.2f})"'
        if number in ranks:
            # The word joiner keeps the number on the line of what it numbers.
            place = f"<sup>\u2060{ranks[number]}{sign(span)}</sup>"
            words = f'<mark class="kd-most" {style}><u>{words}</u>{place}</mark>'
        elif share >= 0.05:
            words = f"<mark {style}>{words}</mark>"
        parts.append(words)
    rest = text[end:]
    if cut and rest:
        rest = say("unread", language, count=f"{len(rest):,}")
        parts.append(f' <span class="kd-unread">{rest}</span>')
    else:
        parts.append(escape(rest))
    return "".join(parts)


def render_counts(name, counts, label_names, seconds, language):
    """That a file is labelled, and how often each label was given."""
    said = say("labelled", language, rows=f"{counts.total():,}", name=name, seconds=f"{seconds:.2f}")
    shown = [label for label in label_names if counts[label]]
    shown.sort(key=lambda label: -counts[label])
    rows = "".join(f'<tr><th scope="row">{escape(label)}</th><td>{counts[label]:,}</td></tr>' for label in shown)
    head = f'<tr><th scope="col">{say("label", language)}</th><th scope="col">{say("rows", language)}</th></tr>'
    return section(
        f'<p class="kd-verdict">{escape(said)}</p><table><thead>{head}</thead><tbody>{rows}</tbody></table>', language
    )
