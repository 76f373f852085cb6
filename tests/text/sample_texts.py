"""Texts for tokenizers of either kind."""

LINES = [
    f"{name} was born in {place} in {year} and founded the {noun} of {place}."
    for year, (name, place, noun) in enumerate(
        [(n, p, o) for n in ("Zoë", "Amélie", "Bob") for p in ("Köln", "Łódź", "Oslo") for o in ("bank", "museum")],
        1900,
    )
]
ODD_TEXT = "  Zoë  was [MASK] in 日本語 🎉🎉 ﬁne e\u0301tude\n\n Łódź\tİstanbul ½ naïve"
