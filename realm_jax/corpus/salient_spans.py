"""Finds the spans worth masking: names, dates and quantities, whose recovery asks for knowledge of the world.

Salient span masking (REALM, arXiv:2002.08909, section 3.4) masks named entities and dates.  The paper tags entities
with a BERT trained on CoNLL-2003; the default here is a set of rules and the corpus's own statistics: no model file, no
download, and fast enough to tag a corpus while it is tokenised.  How good it is: docs/results/salient_spans.md.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from realm_jax.storage import fetch

Spans = list[tuple[int, int]]


@runtime_checkable
class SalientSpanTagger(Protocol):
    """Anything that finds salient spans."""

    def spans(self, text: str, sentences: Sequence[tuple[int, int]]) -> Spans:
        """Half-open character spans in the text, sorted and disjoint, each within one of the given sentences."""
        ...


@runtime_checkable
class BatchTagger(SalientSpanTagger, Protocol):
    """A tagger that is faster with many texts at a time, as a model is."""

    def batch_spans(self, texts: Sequence[str], sentences: Sequence[Sequence[tuple[int, int]]]) -> list[Spans]:
        """What `spans` finds in each text."""
        ...


class TaggedSpan(NamedTuple):
    """A salient span with its kind: "name", "date" or "number"; a trained tagger names kinds of its own."""

    start: int
    end: int
    kind: str


class WordCount(NamedTuple):
    """How often a word occurs in lower case, and with a capital where no sentence begins."""

    lower: int
    capitalised: int


def _any(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


_UPPER = "".join(char for char in map(chr, [*range(0x0530), *range(0x1E00, 0x2000)]) if char.isupper())
_MONTH = _any("January February March April May June July August September October November December")
_SHORT_MONTH = r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
_ANY_MONTH = f"(?:{_MONTH}|{_SHORT_MONTH})"
_DAY = r"(?:[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?(?!\w)"
_YEAR = r"(?:1\d{3}|20\d\d)"
_ERA = r"(?: (?:BCE?|CE|AD|B\.C\.|A\.D\.)(?!\w))"
_SCALE = _any("hundred thousand million billion trillion")
_UNIT = _any(
    "km m cm mm nm mi mile miles metre metres meter meters kilometre kilometres kilometer kilometers feet foot ft "
    "inch inches yard yards acre acres hectare hectares ha kg g mg ton tons tonne tonnes pound pounds lb lbs "
    "ounce ounces litre litres liter liters gallon gallons mph km/h kph knots MW kW GW kV watts volts horsepower "
    "hp Hz kHz MHz GHz MB GB kB TB °C °F degrees percent dollars euros cents people inhabitants residents "
    "households families members students votes seats soldiers men women children year years month months week "
    "weeks day days hour hours minute minutes second seconds times copies species"
)
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
# All that begins with a digit or a sign of money; tried where the scan below met one.
_DATE_OR_QUANTITY = re.compile(
    # 28 September 1990, 28 September, 3–5 May 1990
    rf"(?P<date>(?:{_DAY}[–-])?{_DAY}(?: of)? {_ANY_MONTH}(?!\w)(?:,? {_YEAR}(?!\w))?"
    rf"|\d{{1,2}}(?:st|nd|rd|th)(?:[–-]\d{{1,2}}(?:st|nd|rd|th))?[ -]centur(?:y|ies){_ERA}?"
    r"|\d{4}-\d\d-\d\d(?!\w)"
    # 1990, 1990s, 1990–95; not 1990,000 nor 1990.5 nor 1990 people
    rf"|{_YEAR}(?:s|[–/-](?:{_YEAR}|\d\d))?(?!\w|[.,]\d|[ -](?:{_UNIT}|{_SCALE})(?!\w)| ?%){_ERA}?"
    rf"|\d{{1,4}}{_ERA})"
    rf"|(?P<number>[$€£¥] ?{_NUMBER}(?:[ -]?(?:{_SCALE}|[mbk]n?)(?!\w))?"
    rf"|{_NUMBER}(?: ?%|(?:[ -]{_SCALE})?[ -]?(?:(?:square|cubic|sq) )?{_UNIT}(?!\w)|[ -]{_SCALE}(?!\w))"
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w))"
)
_MONTH_DATE = re.compile(
    rf"{_ANY_MONTH} {_DAY}(?:[–-]{_DAY})?(?:,? {_YEAR}(?!\w))?|{_ANY_MONTH},? {_YEAR}(?!\w)"
    r"|(?:January|February|April|June|July|August|September|October|November|December)(?!\w)"
)
_SHARE_BEFORE_NAME = 0.98  # a word in lower case this often is no part of the name that follows it
_AMBIGUOUS_MONTHS = ("May", "March")
_MONTH_STARTS = frozenset("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
_MONEY = "$€£¥"
_NUMBER_INITIALS = f"0123456789{_MONEY}"
# One word of a name: O'Neill, Jean-Luc, AT&T, U.S.; before a further one also with a full stop: J. Smith, St. Louis
# (the sentence does not end there, or the scan would).  A final possessive 's stays outside (but Hadrian's Wall).
_REST_OF_WORD = rf"(?:(?:\.[{_UPPER}](?!\w))++\.?|\w*+(?:['’-](?!s(?!\w))\w+|&[{_UPPER}]\w*)*+(?:\.(?= [{_UPPER}]))?)"
_NAME_WORD = rf"[{_UPPER}]{_REST_OF_WORD}"
# What may stand between two words of a name.
_CONNECTOR = (
    "(?:of the|of|de la|de las|de los|del|de|du|des|da|dos|do|di|della|la|le|van der|van den|van de|van|von der|von|zu|"
    "den|der|bin|ibn|al|el|ad|y|e|for the|for|&) "
)
# "Saturday October 13", but Theresa May.
_NO_NAME = rf"(?:January|February|July|September|October|November|December)(?!\w)|{_MONTH} \d"
_PREFIX = "(?:[dl]['’]|[ae]l-)"
_TRAILING_NUMBER = rf"(?: \d{{1,3}}(?![\w%]|[.,:/–-]\d|[ -](?:{_UNIT}|{_SCALE})(?!\w)|(?: of)? {_ANY_MONTH}|{_ERA}))?"
_REST_OF_NAME = (
    rf"{_REST_OF_WORD}(?:(?:['’]s)? (?:{_CONNECTOR})?(?!{_NO_NAME}){_PREFIX}?{_NAME_WORD})*+{_TRAILING_NUMBER}"
)
_ORDINAL_NAME = re.compile(rf"\d{{1,3}}(?:st|nd|rd|d|th) [{_UPPER}]{_REST_OF_NAME}")  # 65th Air Division
# The scan: it must begin with a set of characters, on which the search skips ahead (three times as fast as a group of
# alternatives).  A name whole, of a number only its digits.
_SCAN = re.compile(rf"[{_UPPER}0-9$€£¥](?:(?<=[0-9$€£¥])[\d.,]*+|{_REST_OF_NAME})")

_LOWER_WORD = re.compile(r"(?<![\w'’])[a-zß-öø-ÿ]\w+")
_INNER_CAPITALISED = re.compile(rf"(?<=[a-z,] )[{_UPPER}][\w'’-]+")
_NEXT_CAPITAL = re.compile(rf"[\s-][{_UPPER}]")
_ROOT_END = re.compile("['’-]")
_OPENING = "\"'“‘«([-–—*•: "
_FUNCTION_WORDS_TEXT = (
    "a an the this that these those he she it they we you i his her its their our your my in on at by of to from "
    "with without for after before during since until when while where whereas although though however as if "
    "because but and or nor so yet all some any many most much more few several each every both either neither no "
    "not one two three four five six seven eight nine ten first second third another other others such same then "
    "than there here now today also only even just once again still thus therefore hence moreover furthermore "
    "meanwhile later early earlier initially originally currently recently finally eventually additionally "
    "subsequently who whom whose which what why how under over between among through throughout within upon "
    "against according due despite following prior like unlike near around about above below along across is are "
    "was were be been being has have had do does did can could may might must shall should will would let see "
    "note born"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
# Ranks and offices before a person's name are no part of it.
_OFFICES_TEXT = (
    "Fellow Chair Chairman Chairwoman President Director Secretary Member Professor Governor Mayor Minister Dean Head"
)
_OFFICES = frozenset(_OFFICES_TEXT.split())
_TITLES_TEXT = (
    "Mr Mrs Ms Dr Prof Rev Gen Col Lt Sgt Capt Major General Brigadier Colonel Captain Lieutenant Sergeant "
    "Corporal Private Admiral Commander Commodore Marshal Senator Representative Congressman Congresswoman Judge "
    "Justice Bishop Archbishop Reverend Coach Senior Junior Freshman Sophomore Deputy Vice Former"
)
_TITLES = frozenset(_TITLES_TEXT.split()) | _OFFICES


class RuleTagger:
    """Names, dates and quantities by rules; whether a capitalised first word is a name is decided by corpus statistics.

    A word at the start of a sentence (or of a quotation) has a capital whether it is a name or not.  Alone, it is taken
    for a common word and left out if elsewhere it occurs in lower case at least `lower_share` of the time; before a
    further capital ("Battle of Hastings", but "Born in Paris"), only if it hardly ever has a capital.

    >>> tagger = RuleTagger.fit(["a town in May. The town grew, a big town."])
    >>> text = "Town officials met Ann of York on 3 May 1990."
    >>> [text[start:end] for start, end in tagger.spans(text, [(0, len(text))])]
    ['Ann of York', '3 May 1990']

    Args:
      words: counts by lower-cased word, from `fit`; None knows function words only.
      lower_share: from 0 (any word seen in lower case is common) to 1.
    """

    def __init__(self, words: Mapping[str, WordCount] | None = None, lower_share: float = 0.4):
        if not 0 <= lower_share <= 1:
            raise ValueError(f"expected lower_share between 0 and 1, got {lower_share}")
        self.words = dict(words or {})
        self.lower_share = lower_share
        self._common = _FUNCTION_WORDS | self._with_lower_share(lower_share)
        self._common_before_name = _FUNCTION_WORDS | self._with_lower_share(max(lower_share, _SHARE_BEFORE_NAME))

    def _with_lower_share(self, share: float) -> set[str]:
        return {
            word
            for word, count in self.words.items()
            if count.lower and count.lower >= share * (count.lower + count.capitalised)
        }

    @classmethod
    def fit(cls, texts: Iterable[str], max_chars: int = 20_000_000, lower_share: float = 0.4) -> "RuleTagger":
        """Counts the words of the texts; `max_chars` characters suffice, the rest is not read."""
        lower: Counter[str] = Counter()
        capitalised: Counter[str] = Counter()
        num_chars = 0
        for text in texts:
            lower.update(_LOWER_WORD.findall(text))
            capitalised.update(_INNER_CAPITALISED.findall(text))
            num_chars += len(text)
            if num_chars >= max_chars:
                break
        inner: Counter[str] = Counter()
        for word, count in capitalised.items():
            inner[_root(word)] += count
        return cls({word: WordCount(count, inner[word]) for word, count in lower.items()}, lower_share)

    def save(self, path: str | Path) -> None:
        """Writes the statistics as JSON, so that another corpus can be tagged alike."""
        content = {"format": "realm_jax word counts 1", "lower_share": self.lower_share, "words": self.words}
        Path(path).write_text(json.dumps(content, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "RuleTagger":
        """Reads what `save` wrote; ValueError for any other file."""
        try:
            content = json.loads(fetch(path).read_text(encoding="utf-8"))
            words = {word: WordCount(int(lower), int(inner)) for word, (lower, inner) in content["words"].items()}
            return cls(words, float(content["lower_share"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: expected word counts written by RuleTagger.save, got {error!r}; fit them again"
            ) from error

    def spans(self, text: str, sentences: Sequence[tuple[int, int]]) -> Spans:
        """Half-open character spans in the text, sorted and disjoint, each within one of the given sentences."""
        return [(start, end) for start, end, _ in self._tag(text, sentences)]

    def tagged_spans(self, text: str, sentences: Sequence[tuple[int, int]]) -> list[TaggedSpan]:
        """The same spans with their kinds."""
        return [TaggedSpan(*span) for span in self._tag(text, sentences)]

    def _tag(self, text: str, sentences: Sequence[tuple[int, int]]) -> list[tuple[int, int, str]]:
        found = []
        done = 0  # the end of the last span: a date goes on after what the scan took for a name
        for first, last in sentences:
            for match in _SCAN.finditer(text, first, last):
                start, end = match.span()
                if start < done:
                    continue
                initial, before = text[start], text[start - 1] if start > first else ""
                if before != " " and before.isalnum() and initial not in _MONEY:
                    continue
                if initial in _NUMBER_INITIALS:
                    kind, end = _number(text, start, last)
                else:
                    name = text[start:end]
                    after_word = before == " " and start > first + 1 and text[start - 2].isalnum()  # as most are
                    if not after_word and _begins(text, start, first):
                        name = name[self._after_common_words(name) :]
                        start = end - len(name)
                    kind, month_like = "name", name[:3] in _MONTH_STARTS
                    if month_like and (date := _MONTH_DATE.match(text, start, last)):
                        kind, end = "date", date.end()
                    elif month_like and name in _AMBIGUOUS_MONTHS:
                        kind = "date"
                    else:
                        space = name.find(" ")
                        if space > 0 and name[:space].rstrip(".") in _TITLES:
                            start += self._after_titles(name)
                            space = text.find(" ", start, end)
                        if space < 0 and text[start:end].lower() in _FUNCTION_WORDS:
                            continue
                if start < end:
                    found.append((start, end, kind))
                    done = end
        return found

    def _after_common_words(self, name: str) -> int:
        """Where the name begins once common words at its start are left out; its length if nothing is left."""
        start, end = 0, len(name)
        while start < end:
            word = _first_word(name, start)
            if start and word in _AMBIGUOUS_MONTHS:  # "In May"
                return start
            if not _is_in(self._common, word):
                return start
            following = _NEXT_CAPITAL.search(name, start + len(word))
            if following is None:
                return end
            if not _is_in(self._common_before_name, word):
                return start
            start = following.start() + 1
        return end

    def _after_titles(self, name: str) -> int:
        """Where the name begins after ranks and offices ("Major", "Dr."), unless they belong to it ("Major League")."""
        start = 0
        while True:
            word = _first_word(name, start)
            following = start + len(word) + 1
            if word.rstrip(".") not in _TITLES or following >= len(name):
                return start
            if not name[following].isupper():  # "Fellow of the Society"
                following_capital = _NEXT_CAPITAL.search(name, following)
                if word not in _OFFICES or following_capital is None:
                    return start
                following = following_capital.start() + 1
            else:
                next_word = _first_word(name, following)
                if _is_in(self._common, next_word) and next_word not in _TITLES:
                    return start
            start = following


def _number(text: str, start: int, last: int) -> tuple[str, int]:
    """Kind and end of what begins with a digit or a sign of money; it ends at its start if it is not salient."""
    if (quantity := _DATE_OR_QUANTITY.match(text, start, last)) is not None:
        return str(quantity.lastgroup), quantity.end()
    if (named := _ORDINAL_NAME.match(text, start, last)) is not None:
        return "name", named.end()
    return "number", start


def _begins(text: str, start: int, first: int) -> bool:
    """Whether a sentence, a quotation or what a colon announces begins at `start`."""
    if start > first and text[start - 1] not in _OPENING:
        return False
    before = text[max(first, start - 3) : start].rstrip()
    return not before or (before[-1] in "\"'“‘«([:–—*•" and text[start - 1] != "-")


def _first_word(name: str, start: int) -> str:
    stop = name.find(" ", start)
    return name[start:] if stop < 0 else name[start:stop]


def _is_in(common: set[str] | frozenset[str], word: str) -> bool:
    """Whether a capitalised word is one of the common ones, as it is or before its hyphen; NASA is not."""
    if len(word) > 1 and word.isupper():
        return False
    return word.lower() in common or (_ROOT_END.search(word) is not None and _root(word) in common)


def _root(word: str) -> str:
    """The lower-cased word without what follows an apostrophe or a hyphen."""
    return _ROOT_END.split(word, 1)[0].lower()


_SPACY_CHARS = 100_000  # at once: spaCy refuses a million, and a pipeline's memory grows with the length


def _windows(sentences: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """The sentences' stretch of text in pieces of whole sentences, of at most so many characters; one longer is cut.

    >>> list(_windows([(0, 4), (5, 9), (10, 14), (15, 40)], 10))
    [(0, 9), (10, 14), (15, 25)]
    """
    first, last = -1, -1
    for start, end in sentences:
        if first >= 0 and end - first > most:
            yield first, min(last, first + most)
            first = -1
        first, last = start if first < 0 else first, end
    if first >= 0:
        yield first, min(last, first + most)


class SpacyTagger:
    """Entities of a spaCy pipeline: better than rules where a trained pipeline is at hand, some ten times slower.

    Args:
      pipeline: the name of an installed pipeline ("en_core_web_sm"), or a loaded one.
      labels: keep only entities with these labels; None keeps all.
    """

    def __init__(self, pipeline: object = "en_core_web_sm", labels: tuple[str, ...] | None = None):
        try:
            import spacy
        except ImportError as error:
            raise ValueError(
                "a tagger of spaCy needs spaCy, which is not installed: pip install 'realm_jax[spacy]', then "
                'python -m spacy download en_core_web_sm; or set tagger="rules", which needs nothing'
            ) from error
        if isinstance(pipeline, str):
            try:
                pipeline = spacy.load(pipeline)
            except OSError as error:
                raise ValueError(
                    f"expected an installed spaCy pipeline, got {pipeline!r}; "
                    f"install it with: python -m spacy download {pipeline}"
                ) from error
        self._pipeline = pipeline
        self._labels = labels

    def spans(self, text: str, sentences: Sequence[tuple[int, int]]) -> Spans:
        """Half-open character spans in the text, sorted and disjoint; entities across a sentence's end are left out."""
        entities = [
            (first + entity.start_char, first + entity.end_char)
            for first, last in _windows(sentences, _SPACY_CHARS)
            for entity in self._pipeline(text[first:last]).ents  # type: ignore[operator]
            if self._labels is None or entity.label_ in self._labels
        ]
        kept, place = [], 0
        for start, end in sorted(entities):
            while place < len(sentences) and sentences[place][1] < end:
                place += 1
            if place < len(sentences) and sentences[place][0] <= start:
                kept.append((start, end))
        return kept
