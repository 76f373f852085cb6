"""The wordings of the embedded corpus: what is known of each kind of entity, and how articles and sentences say it.

`{s}` stands for the subject and `{o}` for the object. Phrases are clauses without a full stop, so that they can be framed.
No wording of a sentence to mask is used by an article, though some share a word with one, as paraphrases do.
"""

from typing import Literal, NamedTuple

Kind = Literal["person", "town", "company", "work"]
ObjectKind = Literal["person", "town", "company", "work", "year", "river", "region"]

KINDS: tuple[tuple[Kind, int], ...] = (("person", 2), ("town", 1), ("company", 1), ("work", 1))
"""The kinds of entities and their weights."""


class FactPhrases(NamedTuple):
    """The wordings of one fact."""

    object_kind: ObjectKind
    article: tuple[str, str, str]
    sentence: tuple[str, str, str]
    clue: str
    """An apposition that tells which bearer of a shared name is meant."""
    question: str


PERSON: dict[str, FactPhrases] = {
    "birth_year": FactPhrases(
        "year",
        ("{s} was born in {o}", "in {o} fell the birth of {s}", "born {o}"),
        ("{o} saw the birth of {s}", "the parents of {s} rejoiced over the newborn in {o}", "{s}, born {o}, was a twin"),
        "born in {o}",
        "When was {s} born?",
    ),
    "birth_place": FactPhrases(
        "town",
        ("{s} grew up in {o}", "{o} was the childhood town of {s}", "native of {o}"),
        ("{s} went to school as a child in {o}", "{o} counts {s} among its natives", "as a youth {s} grew tall near {o}"),
        "a native of {o}",
        "Where did {s} grow up?",
    ),
    "teacher": FactPhrases(
        "person",
        ("{s} was taught by {o}", "{o} instructed {s}", "pupil of {o}"),
        ("{o} once had {s} as a student", "{s} learnt everything as a pupil from {o}", "it was {o} who taught {s} the craft"),
        "a pupil of {o}",
        "Who taught {s}?",
    ),
    "employer": FactPhrases(
        "company",
        ("{s} worked for {o}", "{o} gave a post to {s}", "employed by {o}"),
        ("{o} gave {s} employment", "{s} drew a salary from {o} for work done", "for years {s} sat at a desk in a post with {o}"),
        "employed by {o}",
        "Who employed {s}?",
    ),
    "spouse": FactPhrases(
        "person",
        ("{s} married {o}", "{o} was wed to {s}", "spouse {o}"),
        ("{s} kept house with {o} after the wedding", "{o} took {s} in marriage", "{s} and spouse {o} shared a long life"),
        "the spouse of {o}",
        "Whom did {s} marry?",
    ),
    "home": FactPhrases(
        "town",
        ("{s} settled in {o}", "in {o} stands the house of {s}", "retired to {o}"),
        ("the last residence of {s}, a house with a garden, is in {o}", "{o} is where {s} chose to settle",
         "in retirement {s} moved to {o}"),
        "living in retirement at {o}",
        "Where did {s} settle?",
    ),
    "translated": FactPhrases(
        "work",
        ("{s} put {o} into another tongue", "the translation of {o} is by {s}", "translator of {o}"),
        ("foreign readers owe the translation of {o} to {s}", "{s} put {o} into another language",
         "{o} was rendered abroad by {s}"),
        "translator of {o}",
        "What did {s} translate?",
    ),
}  # fmt: skip

TOWN: dict[str, FactPhrases] = {
    "founded_year": FactPhrases(
        "year",
        ("{s} was founded in {o}", "in {o} came the foundation of {s}", "charter {o}"),
        ("{o} is the date on the charter of {s}", "the first houses of {s} were founded about {o}",
         "settlers laid the foundation of {s} in {o}"),
        "founded in {o}",
        "When was {s} founded?",
    ),
    "founder": FactPhrases(
        "person",
        ("{s} was established by {o}", "to {o} is owed the beginning of {s}", "first settler {o}"),
        ("{o} is honoured as the first settler of {s}", "the establishment of {s} was the deed of {o}",
         "without {o} there would be no beginning for {s}"),
        "established by {o}",
        "Who established {s}?",
    ),
    "river": FactPhrases(
        "river",
        ("{s} lies on the {o}", "the banks of the {o} carry {s}", "river {o}"),
        ("boats reach {s} by the river {o}", "when the {o} floods its banks, {s} stands under water",
         "bridges lie over the {o} in {s}"),
        "on the banks of the {o}",
        "Which river runs through {s}?",
    ),
    "mayor": FactPhrases(
        "person",
        ("{s} is governed by {o}", "{o} leads the council of {s}", "mayor {o}"),
        ("{o} was elected mayor in {s}", "the council at {s} answers to {o}", "to govern {s} is the duty of {o}"),
        "governed by {o}",
        "Who is the mayor of {s}?",
    ),
    "region": FactPhrases(
        "region",
        ("{s} belongs to {o}", "{o} includes the town {s}", "province of {o}"),
        ("{s} pays its taxes to the province of {o}", "maps of the district {o} show {s}",
         "the roads of the {o} region meet in {s}"),
        "in the province of {o}",
        "To which province does {s} belong?",
    ),
    "industry": FactPhrases(
        "company",
        ("{s} works for {o}", "{o} runs the factory of {s}", "main trade {o}"),
        ("wages at {s} are paid by the factory of {o}", "should {o} close, trade in {s} would suffer",
         "the workers of {s} go to {o} every morning"),
        "fed by {o}",
        "Which company feeds {s}?",
    ),
    "twin": FactPhrases(
        "town",
        ("{s} is twinned with {o}", "{o} signed a friendship with {s}", "sister town {o}"),
        ("children of {s} visit the sister town {o}", "{o} and its twin {s} exchange gifts",
         "the friendship of {s} goes out to {o}"),
        "twinned with {o}",
        "With which town is {s} twinned?",
    ),
}  # fmt: skip

COMPANY: dict[str, FactPhrases] = {
    "opened_year": FactPhrases(
        "year",
        ("{s} was opened in {o}", "in {o} began the business of {s}", "start {o}"),
        ("{o} was the year when the doors of {s} opened", "since {o} there has been business for {s}",
         "the first customers of {s} paid in {o}, at the start"),
        "opened in {o}",
        "When was {s} opened?",
    ),
    "creator": FactPhrases(
        "person",
        ("{s} was created by {o}", "{o} had the idea of {s}", "set up by {o}"),
        ("{o} borrowed money to set up {s}", "{s} is the creation of {o}", "the idea of {s} came to {o} in a dream"),
        "the creation of {o}",
        "Who created {s}?",
    ),
    "seat": FactPhrases(
        "town",
        ("{s} has its seat in {o}", "{o} hosts the base of {s}", "head office {o}"),
        ("letters to the head office of {s} go to {o}", "{o} is proud to be the seat of {s}",
         "the base from which {s} is run stands in {o}"),
        "based at {o}",
        "Where is the seat of {s}?",
    ),
    "director": FactPhrases(
        "person",
        ("{s} is directed by {o}", "{o} gives the orders at {s}", "manager {o}"),
        ("{o} signs the letters as director of {s}", "orders at {s} come from the manager, {o}",
         "the direction of {s} lies with {o}"),
        "managed by {o}",
        "Who directs {s}?",
    ),
    "rival": FactPhrases(
        "company",
        ("{s} competes with {o}", "the prices of {o} frighten {s}", "rival {o}"),
        ("customers leave {s} for its competitor {o}", "the rivalry with {o} costs {s} dear",
         "lower prices at {o} would hurt {s}"),
        "the rival of {o}",
        "With whom does {s} compete?",
    ),
    "warehouse": FactPhrases(
        "town",
        ("{s} keeps a warehouse at {o}", "in {o} lie the goods of {s}", "depot in {o}"),
        ("thieves broke into the warehouse of {s} at {o}", "{o} stores what {s} cannot sell",
         "carts of goods leave the depot of {s} in {o}"),
        "with a depot at {o}",
        "Where does {s} keep a warehouse?",
    ),
    "fire_year": FactPhrases(
        "year",
        ("{s} burnt down in {o}", "in {o} only ashes remained of {s}", "great fire {o}"),
        ("the great fire of {o} spared little of {s}", "flames took the roof of {s} in {o} and all was burnt",
         "{s} rose again from its ashes in {o}"),
        "ruined by fire in {o}",
        "When did {s} burn down?",
    ),
}  # fmt: skip

WORK: dict[str, FactPhrases] = {
    "published_year": FactPhrases(
        "year",
        ("{s} was published in {o}", "in {o} the shops received {s}", "first copies {o}"),
        ("{o} was the year that brought {s} to the shops", "the first copies of {s} were published in spring {o}",
         "the appearance of {s} in {o} caused a stir"),
        "published in {o}",
        "When was {s} published?",
    ),
    "author": FactPhrases(
        "person",
        ("{s} was written by {o}", "a novel by {o} is {s}", "author {o}"),
        ("{o} wrote {s} in one winter", "{s} flowed from the pen of its author {o}",
         "critics praise {o} for the novel {s}"),
        "written by {o}",
        "Who wrote {s}?",
    ),
    "setting": FactPhrases(
        "town",
        ("{s} takes place at {o}", "in {o} unfolds the plot of {s}", "set in {o}"),
        ("the setting of {s} is a street in {o}", "whoever reads {s} walks through {o} in the plot",
         "{o} is the place where the heroes of {s} meet"),
        "set in {o}",
        "Where is {s} set?",
    ),
    "publisher": FactPhrases(
        "company",
        ("{s} was printed by {o}", "{o} owns the rights to {s}", "issued by {o}"),
        ("the presses of {o} printed {s}", "{o} asks a fee for the rights to {s}", "a new issue of {s} is planned at {o}"),
        "printed by {o}",
        "Who printed {s}?",
    ),
    "dedicatee": FactPhrases(
        "person",
        ("{s} is dedicated to {o}", "{o} has the gratitude of {s}", "honours {o}"),
        ("the first page of {s} has a dedication to {o}", "{o} wept at being honoured by {s}",
         "in gratitude {s} was dedicated to dear {o}"),
        "dedicated to {o}",
        "To whom is {s} dedicated?",
    ),
    "model": FactPhrases(
        "work",
        ("{s} was inspired by {o}", "{o} is imitated by {s}", "model {o}"),
        ("without {o} as a model, {s} is unthinkable", "{s} borrows its inspiration from {o}",
         "scholars call {s} an imitation of {o}"),
        "inspired by {o}",
        "What inspired {s}?",
    ),
    "stage_year": FactPhrases(
        "year",
        ("{s} was staged in {o}", "in {o} the theatre gave {s}", "play {o}"),
        ("actors brought {s} to the stage in {o}", "the theatre sold out when {s} was played in {o}",
         "in {o} audiences saw {s} as a play"),
        "staged in {o}",
        "When was {s} staged?",
    ),
}  # fmt: skip

FACTS: dict[Kind, dict[str, FactPhrases]] = {"person": PERSON, "town": TOWN, "company": COMPANY, "work": WORK}

STAND_INS: dict[Kind, str] = {"person": "this person", "town": "the town", "company": "the company", "work": "the book"}
"""What an article calls its subject once it has been named."""

FRAMES: tuple[tuple[str, tuple[Kind, ...]], ...] = (
    ("speaking in {0}, {1} said that {c}", ("town", "person")),
    ("{0} of {1} wrote home that {c}", ("person", "company")),
    ("readers of {0} will remember that {c}", ("work",)),
    ("{c}, as {0} told a meeting in {1}", ("person", "town")),
    ("a paper from {0} reports that {c}", ("town",)),
    ("while {0} bargained with {1}, {2} found out that {c}", ("company", "company", "person")),
    ("{c}, a fact which {0} denies", ("person",)),
    ("asked about {0}, {1} only said that {c}", ("work", "person")),
)
"""What surrounds a fact in a sentence to mask: the kinds of entities mentioned, and {c} for the clause."""

PASSING_MENTIONS: dict[Kind, tuple[str, ...]] = {
    "person": ("{s} is often confused with {o}", "{o} never met {s}"),
    "town": ("travellers compare {s} with {o}", "a street in {s} is named after {o}"),
    "company": ("{s} once sued {o}", "{o} has nothing to do with {s}"),
    "work": ("{s} mocks {o}", "{o} never mentions {s}"),
}

TOWN_MODIFIERS = ("Upper", "Lower", "North", "South", "New", "Old", "Great", "Little")
TRADES = (
    "Foundry", "Mills", "Bank", "Press", "Shipping", "Brewery", "Textiles", "Mining", "Railways", "Timber", "Glass",
    "Tobacco", "Bakeries", "Fisheries", "Salt", "Chemicals",
)  # fmt: skip
WORK_ADJECTIVES = (
    "Silver", "Golden", "Silent", "Broken", "Hidden", "Winter", "Crimson", "Distant", "Empty", "Frozen", "Gentle",
    "Hollow", "Iron", "Last", "Lonely", "Midnight", "Narrow", "Painted", "Quiet", "Restless", "Sacred", "Second",
    "Sleeping", "Stolen", "Summer", "Twisted", "Unseen", "Velvet", "Wandering", "Wooden",
)  # fmt: skip
WORK_NOUNS = (
    "Orchard", "Lantern", "Mirror", "Harbour", "Garden", "Bridge", "Tower", "Clock", "Feather", "Island", "Kingdom",
    "Letter", "Moon", "Night", "Ocean", "Palace", "Rose", "Shadow", "Song", "Star", "Storm", "Sword", "Throne",
    "Valley", "Voice", "Window", "Wolf", "Crown", "Door", "Mountain", "Key", "Mask", "Road", "Ship", "Stone", "Thread",
)  # fmt: skip
