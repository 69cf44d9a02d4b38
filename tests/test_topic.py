import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.learn import MAX_STEM_LENGTH, MIN_WORDS, general_part, names_its_topic, stem

ASK = "How do I push git tags to a remote repository?"
RESPONSE = (
    "Run git push with the name of the tag. A lightweight marker is only a name, while an "
    "annotated marker holds a date; see Torvalds (2005) on page 42 of the manual."
)


@pytest.mark.parametrize(
    "text",
    [
        "explains how to push",
        "names the repository",
        "tells what a remote is",
        "shows the use of GIT",
        "warns about repositories",
    ],
)
def test_a_word_of_the_instruction_in_any_form_names_the_topic(text: str) -> None:
    assert names_its_topic(text, ASK, RESPONSE)


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("describes pushing", "How do I push tags?"),
        ("speaks of the tide in plain words", "Why do tides come twice a day?"),
        ("names two ovens", "How hot should my oven be?"),
    ],
)
def test_a_short_word_of_the_instruction_in_any_form_names_the_topic(
    text: str, instruction: str
) -> None:
    assert names_its_topic(text, instruction, "So.")


@pytest.mark.parametrize(
    "text",
    ["tells the two kinds of marker apart", "quotes Torvalds", "names the year 2005"],
    ids=["repeated long word", "name", "number"],
)
def test_a_rarer_word_of_the_response_names_the_topic(text: str) -> None:
    assert names_its_topic(text, ASK, RESPONSE)


FORMS = [
    ("push", "pushes", "pushed", "pushing"),
    ("tide", "tides"),
    ("oven", "ovens"),
    ("knot", "knots", "knotted", "knotting"),
    ("class", "classes"),
    ("bake", "bakes", "baked", "baking"),
    ("remote", "remotes", "remotely"),
    ("quick", "quickly"),
]


@pytest.mark.parametrize("forms", FORMS)
def test_the_forms_of_a_word_have_one_stem(forms: tuple[str, ...]) -> None:
    assert len({stem(form) for form in forms}) == 1


@pytest.mark.parametrize(
    "forms", [("river", "rivers"), ("marker", "markers"), ("wedding", "weddings")]
)
def test_a_plural_has_the_stem_of_its_singular(forms: tuple[str, ...]) -> None:
    assert len({stem(form) for form in forms}) == 1


@given(st.text("abcdersilyngt", max_size=12))
def test_a_stem_begins_its_word(word: str) -> None:
    assert word.startswith(stem(word))
    assert len(stem(word)) <= MAX_STEM_LENGTH


def test_a_number_of_two_digits_names_the_topic() -> None:
    assert names_its_topic("refers to page 42", ASK, RESPONSE)


@pytest.mark.parametrize(
    "text",
    [
        "gives a reason for every claim",
        "closes with a short summary",
        "opens with a direct answer to the question",
        "warns the reader of a common mistake",
        "keeps to a friendly, plain tone",
        "is in 3 parts",
        "",
    ],
)
def test_general_words_name_no_topic(text: str) -> None:
    assert not names_its_topic(text, ASK, RESPONSE)


@pytest.mark.parametrize(
    "instruction",
    [
        "Explain the reason and give an example.",
        "Write a short summary of the answer, with steps.",
        "What is it? How does it work?",
    ],
)
def test_what_every_instruction_says_is_no_topic(instruction: str) -> None:
    text = "explains each step with a reason, an example and a short summary of the answer"
    assert not names_its_topic(text, instruction, "Well.")


def test_short_words_are_no_topic() -> None:
    assert not names_its_topic("is of no use to it", "Is it of use to go on?", "No.")


def test_a_common_word_at_the_start_of_a_sentence_is_no_name() -> None:
    assert not names_its_topic("sounds calm", "Why?", "So it is. Calm days follow.")
    assert names_its_topic("mentions Greenwich", "Why?", "It is so in Greenwich today.")


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("объясняет приливы подробно", "Почему бывают приливы?"),
        ("explica bien las mareas", "¿Por qué hay mareas dos veces al día?"),
        ("nennt die Gezeiten", "Wie entstehen Gezeiten?"),
    ],
)
def test_other_languages_have_topics_too(text: str, instruction: str) -> None:
    assert names_its_topic(text, instruction, "-")


CUTS = {
    "before its preposition": (
        "gives a step-by-step guide to pushing tags",
        "gives a step-by-step guide",
    ),
    "before a comma": (
        "lists every command in order, naming each remote",
        "lists every command in order",
    ),
    "before the last link only": (
        "opens with a warning for the reader about the repository",
        "opens with a warning for the reader",
    ),
    "before a list": (
        "compares two kinds of thing: remote and local",
        "compares two kinds of thing",
    ),
    "with all that led up to it": (
        "opens with a clear view of how and why the remote works",
        "opens with a clear view",
    ),
    "with what belongs to the next word": (
        "gives a plain reason for each of the tags",
        "gives a plain reason",
    ),
    "before a bracket": ("shows a short command (git push)", "shows a short command"),
}


@pytest.mark.parametrize(("text", "part"), CUTS.values(), ids=CUTS)
def test_a_characteristic_is_cut_before_it_names_its_topic(text: str, part: str) -> None:
    assert general_part(text, ASK, RESPONSE) == part


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('begins with "in short" of remotes', 'begins with "in short"'),
        ("gives numbers (with units) for remotes", "gives numbers (with units)"),
    ],
)
def test_a_cut_leaves_quotes_and_brackets_closed(text: str, part: str) -> None:
    assert general_part(text, ASK, RESPONSE) == part


@pytest.mark.parametrize(
    "text",
    [
        "pushes tags",
        "pushes tags with a clear reason for each step",
        "warns of tags",
        "tells how remote tags differ",
    ],
)
def test_what_is_left_without_its_topic_may_be_too_little(text: str) -> None:
    assert general_part(text, ASK, RESPONSE) is None


@pytest.mark.parametrize(
    "text", ["gives a reason for every claim", "is plain, with one thought a sentence", ""]
)
def test_what_names_no_topic_stays_whole(text: str) -> None:
    assert general_part(text, ASK, RESPONSE) == text


PHRASES = st.lists(
    st.sampled_from(
        [
            "gives",
            "a",
            "reason",
            "for",
            "every",
            "claim",
            "about",
            "push,",
            "git",
            "tags",
            "with",
            "order;",
            "remote",
            "(42)",
            "Torvalds:",
            "in",
            "plain",
            "words",
        ]
    ),
    max_size=14,
).map(" ".join)


@given(PHRASES | st.text(max_size=60), PHRASES, PHRASES)
def test_what_is_left_begins_the_text_and_names_no_topic(
    text: str, instruction: str, response: str
) -> None:
    part = general_part(text, instruction, response)
    if part is None:
        assert names_its_topic(text, instruction, response)
    else:
        assert text.startswith(part)
        assert not names_its_topic(part, instruction, response)
        assert part == text or len(part.split()) >= MIN_WORDS
