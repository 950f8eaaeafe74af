"""Names of labels as a plot can show them: in a font of this machine that has their characters, else as ids."""

import functools
import unicodedata
from pathlib import Path

WIDEST = 18  # of a name on an axis; a Chinese character takes two
USUAL = "DejaVu Sans"  # comes with matplotlib
# Parts of file names of fonts that are made for reading, the first found is taken; the rest of the machine's after.
PREFERRED = (
    "notosanscjk-regular", "notosanssc-regular", "notosanscjksc-regular", "sourcehansans", "pingfang", "msyh",
    "wqy-microhei", "wqy-zenhei", "wqy", "droidsansfallback", "hiragino", "stheiti", "simhei", "arialuni", "notosans",
)  # fmt: skip


def axis_names(names):
    """
    Args:
        names (`list[str]`): Of the labels, in the order of their ids.

    Returns:
        `tuple[list[str], list[str]]`: What stands at an axis, names cut to what there is room for or, where no
        font here has all their characters, ids; and the font families to draw it with.
    """
    clean = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in names]
    wanted = {character for name in clean for character in name if character != " "}
    families = find_families(frozenset(wanted))
    if families is None:
        return [str(index) for index in range(len(names))], [USUAL]
    short = [cut(name) for name in clean]
    if len(set(short)) < len(short) or not all(short):
        short = [f"{index} {name}".strip() for index, name in enumerate(short)]
    return short, families


def width(name):
    """Columns that a name takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in name)


def cut(name):
    """A name without its middle, where it is too wide: names that begin alike may end otherwise."""
    if width(name) <= WIDEST:
        return name
    head, tail = name, name
    while width(head) > WIDEST // 2:
        head = head[:-1]
    while width(tail) > WIDEST // 2 - 1:
        tail = tail[1:]
    return f"{head}…{tail}"


def are_ids(names, shown):
    """Whether [`axis_names`] has put ids in place of names."""
    return shown == [str(index) for index in range(len(names))] and list(names) != shown


@functools.lru_cache(maxsize=8)
def find_families(characters):
    """Font families that have all `characters` (`frozenset[str]`) between them, `list[str]`, or None."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    usual = FT2Font(font_manager.findfont(USUAL)).get_charmap()
    missing = {ord(character) for character in characters} - usual.keys()
    if not missing:
        return [USUAL]
    # The list that matplotlib keeps does not know of fonts that were installed since.
    paths = sorted(font_manager.findSystemFonts(), key=rank)
    for path in paths:
        try:
            font = FT2Font(path)
            # Emoji in colour are pictures, which are not drawn.
            if not font.scalable or not missing <= font.get_charmap().keys():
                continue
        except (RuntimeError, OSError):  # no font, or of a kind that matplotlib does not read
            continue
        known = len(font_manager.fontManager.ttflist)
        font_manager.fontManager.addfont(path)
        faces = [entry.name for entry in font_manager.fontManager.ttflist[known:]]
        return [USUAL, next((name for name in faces if name.endswith(" SC")), faces[0])]
    return None


def rank(path):
    """The place of a font's file in the order in which fonts are tried."""
    name = Path(path).name.lower()
    place = next((place for place, part in enumerate(PREFERRED) if part in name), len(PREFERRED))
    return place, "bold" in name or "italic" in name, name
