"""Wikitext to plain text, on mwparserfromhell's tree: prose, headings and list items stay, one a line."""

import html
import re
from typing import Any

# Links that show no text: images and categories, by their English and commonest other names, and links to the same
# page in another language ("de:…").
_SILENT_LINK = re.compile(
    r"\s*(?:file|image|media|category|datei|bild|kategorie|fichier|catégorie|archivo|imagen|categoría|[a-z]{2,3}(?:-[a-z]+)?)\s*:",
    re.IGNORECASE,
)
_SILENT_TAGS_LIST = (
    "ref references gallery table math chem timeline score source syntaxhighlight imagemap hiero graph maplink "
    "mapframe section indicator templatestyles noinclude includeonly"
)
_SILENT_TAGS = frozenset(_SILENT_TAGS_LIST.split())
_BLOCK_TAGS_LIST = "br hr p div li dt dd blockquote poem center td th tr ul ol dl"
_BLOCK_TAGS = frozenset(_BLOCK_TAGS_LIST.split())
# Templates whose parameter is prose; every other template (boxes, citations, navigation) goes.
_TEXT_TEMPLATES = {
    "lang": -1,
    "transl": -1,
    "transliteration": -1,
    "nowrap": 0,
    "nobr": 0,
    "abbr": 0,
    "as of": 0,
    "ill": 0,
    "small": 0,
}
_NUMBER_TEMPLATES = frozenset(("convert", "cvt"))
_TAIL_SECTIONS = frozenset(
    (
        "references",
        "external links",
        "see also",
        "further reading",
        "notes",
        "bibliography",
        "sources",
        "citations",
        "footnotes",
        "notes and references",
    )
)
_QUOTE_MARKUP = re.compile("'{2,5}")
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:–-]*\)")
_TRAILING_IN_BRACKETS = re.compile(r"(?<=\w)[ \t]*[,;:][ \t,;:]*\)")
_LEADING_IN_BRACKETS = re.compile(r"\([\s,;:]+(?=\w)")
_EMPTY_ITEMS = re.compile(r",(?:[ \t]*,)+")  # what a list of templates leaves
_SPACES = re.compile(r"[^\S\n]+")
_SPACE_BEFORE_STOP = re.compile(r" +(?=[,.;:!?)](?:\s|$))", re.MULTILINE)
_LINE_BREAKS = re.compile(r" *\n[ \n]*")
# The parser looks for the end of every mark that is open, through the whole page: with thousands of them for hours.
_MAX_OPEN, _MAX_OPEN_TAGS = 500, 2000
_HEADING_LINE = "\x01"  # marks a heading until empty sections are gone


def wikitext_to_text(wikitext: str) -> str:
    """Prose of an article: without tables, templates, references, images, categories; headings are lines of their own.

    >>> wikitext_to_text("'''Ada''' wrote ''[[Note G|notes]]''<ref>x</ref>. {{cn}}\\n== Life ==\\nBorn in [[London]].")
    'Ada wrote notes.\\nLife\\nBorn in London.'
    """
    import mwparserfromhell

    try:
        tree = mwparserfromhell.parse(wikitext, skip_style_tags=True)
    except mwparserfromhell.parser.ParserError:  # the parser's own bug: the page is as good as empty
        return ""
    parts: list[str] = []
    _render(tree, parts)
    return _tidy("".join(parts))


def is_unbalanced(wikitext: str) -> bool:
    """Whether a page has so many marks without an end that no article was meant.

    >>> is_unbalanced("{{a}} <br> [[b]]"), is_unbalanced("[[b|" * 1000), is_unbalanced("<b>" * 3000)
    (False, True, True)
    """
    open_marks = max(wikitext.count(begin) - wikitext.count(end) for begin, end in ("[]", "{}", "<>"))
    open_tags = wikitext.count("<") - 2 * wikitext.count("</") - wikitext.count("/>")
    return open_marks > _MAX_OPEN or open_tags > _MAX_OPEN_TAGS


def _render(tree: Any, parts: list[str]) -> None:
    from mwparserfromhell import nodes

    for node in tree.nodes:
        kind = type(node)
        if kind is nodes.Text:
            parts.append(node.value)
        elif kind is nodes.Wikilink:
            _render_link(node, parts)
        elif kind is nodes.Tag:
            _render_tag(node, parts)
        elif kind is nodes.Template:
            _render_template(node, parts)
        elif kind is nodes.Heading:
            parts.append(f"\n{_HEADING_LINE}{node.level}")
            _render(node.title, parts)
            parts.append("\n")
        elif kind is nodes.HTMLEntity:
            parts.append(node.normalize() or "")
        elif kind is nodes.ExternalLink and node.title is not None:
            _render(node.title, parts)


def _render_link(node: Any, parts: list[str]) -> None:
    target = str(node.title)
    if _SILENT_LINK.match(target):
        return
    if node.text is None:
        parts.append(target.strip().lstrip(":").split("#")[0] or target.strip().lstrip(":#"))
    else:
        _render(node.text, parts)


def _render_tag(node: Any, parts: list[str]) -> None:
    name = str(node.tag).strip().lower()
    if name in _SILENT_TAGS:
        return
    if name in _BLOCK_TAGS and node.wiki_markup not in ("*", "#", ":", ";"):  # list marks begin a line already
        parts.append("\n")
    if node.contents is not None:
        _render(node.contents, parts)
    if name in _BLOCK_TAGS and not node.self_closing:
        parts.append("\n")


def _render_template(node: Any, parts: list[str]) -> None:
    name = str(node.name).strip().lower().replace("_", " ")
    positional = [parameter.value for parameter in node.params if not parameter.showkey]
    if name in _NUMBER_TEMPLATES and len(positional) >= 2:
        _render(positional[0], parts)
        parts.append(" ")
        _render(positional[1], parts)
    elif name in ("nbsp", "spaced ndash", "snd"):
        parts.append(" " if name == "nbsp" else " – ")
    elif positional and (name in _TEXT_TEMPLATES or name.startswith("lang-")):
        _render(positional[_TEXT_TEMPLATES.get(name, 0)], parts)


def _tidy(text: str) -> str:
    text = _MAGIC_WORD.sub("", _QUOTE_MARKUP.sub("", html.unescape(text)))
    text = _SPACES.sub(" ", text)
    text = _TRAILING_IN_BRACKETS.sub(")", _EMPTY_ITEMS.sub(",", text))
    text = _EMPTY_BRACKETS.sub("", _LEADING_IN_BRACKETS.sub("(", text))
    text = _LINE_BREAKS.sub("\n", _SPACE_BEFORE_STOP.sub("", text)).strip()
    return "\n".join(_without_empty_sections(text.split("\n")))


def _without_empty_sections(lines: list[str]) -> list[str]:
    """Drops sections of references and links, and headings with no text below; keeps the others' headings as lines."""
    kept: list[str] = []
    waiting: list[tuple[int, str]] = []  # headings that no text has followed yet, outermost first
    skipped_level = 0
    for line in lines:
        if line.startswith(_HEADING_LINE):
            level, heading = int(line[1]), line[2:].strip()
            if skipped_level and level > skipped_level:
                continue
            skipped_level = level if heading.lower() in _TAIL_SECTIONS else 0
            waiting = [entry for entry in waiting if entry[0] < level]
            if not skipped_level and heading:
                waiting.append((level, heading))
        elif line and not skipped_level:
            kept += [heading for _, heading in waiting]
            waiting = []
            kept.append(line)
    return kept
