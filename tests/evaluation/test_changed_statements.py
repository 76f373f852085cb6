"""What is asked when documents have changed: the one name or number that differs, and nothing that is only spelled anew."""

from realm_jax.corpus.sources import Article
from realm_jax.evaluation.changed_statements import changed_statements

SAME = "The state lies in the south of the country. "


def _between(before: str, after: str, title: str = "Alaba") -> list[tuple[str, str, str]]:
    found = changed_statements([Article("7", title, SAME + before)], [Article("7", title, SAME + after)])
    return [statement[1:] for statement in found]


def test_a_name_and_a_number_that_changed() -> None:
    assert _between(
        "The current governor of the state is Robert Bent. It is home to 83 crayfish species and many more.",
        "The current governor of the state is Kay Ivo. It is home to 97 crayfish species and many more.",
    ) == [
        ("Alaba: The current governor of the state is what.", "Robert Bent", "Kay Ivo"),
        ("Alaba: It is home to what crayfish species and many more.", "83", "97"),
    ]


def test_marks_around_what_changed_stay_in_the_sentence() -> None:
    [(question, before, after)] = _between(
        "The board has about (5,783) members who vote, it says.",
        "The board has about (8,012) members who vote, it says.",
    )
    assert (question, before, after) == (
        "Alaba: The board has about (what) members who vote, it says.",
        "5,783",
        "8,012",
    )


def test_what_is_no_change() -> None:
    for before, after in (
        ("Homyard", "Holmyard"),  # spelling
        ("60%–80%", "60–80%"),  # the same numbers
        ("Europe", "Europe,"),  # a mark
        ("Lincoln", "Abraham Lincoln"),  # part of the other
        ("nice people", "kind people"),  # neither name nor number
        ("Kay Ivo", "the woman whom they had all chosen"),  # too long
    ):
        sentence = "According to all who were there the speech was held by {} on that day."
        assert _between(sentence.format(before), sentence.format(after)) == [], (before, after)


def test_what_cannot_be_asked() -> None:
    # at the beginning, where a capital tells nothing; two differences; the answer given away; a sentence of five words
    for before, after in (
        ("Bent has been the governor for two years.", "Ivo has been the governor for two years."),
        ("In 1990 the mayor of the town was Bent.", "In 1991 the mayor of the town was Ivo."),
        (
            "The house that Bent built is now owned by Bent again.",
            "The house that Bent built is now owned by Ivo again.",
        ),
        ("The mayor was Robert Bent.", "The mayor was Kay Ivo."),
    ):
        assert _between(before, after) == [], before


def test_articles_are_matched_by_id() -> None:
    text = "The current governor of the state is {}."
    before = [Article("1", "A", text.format("Bent")), Article("2", "B", text.format("Bent"))]
    after = [Article("3", "A", text.format("Ivo")), Article("2", "B", text.format("Ivo"))]
    assert [statement.article_id for statement in changed_statements(before, after)] == ["2"]
