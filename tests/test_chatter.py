"""Lines about the response, as models write them, and good answers that only look like it."""

from __future__ import annotations

from typing import Any

import pytest

from nodes.chatter import closing_chatter, opening_chatter
from nodes.criteria import RULES, RuleInput

ASK = "How do I keep a loaf of rye bread fresh?"
LETTER = "Write an email to a friend that asks her to come and see my allotment."
MATTER = "Keep it whole, cut side down, in a linen bag. It stays moist for five days."

OPENERS = {
    "improved response": "Here is the improved response:",
    "in bold": "**Here is the improved response:**",
    "heading": "## Improved Response:",
    "label": "Revised version:",
    "bare label": "Response:",
    "sure": "Sure! Here's a revised version of the text:",
    "sure with a curly apostrophe": "Sure! Here’s how to do it:",
    "certainly": "Certainly! Bread keeps best in a bag.",
    "of course": "Of course! I'd be happy to help with that.",
    "absolutely": "Absolutely!",
    "sure, here is": "Sure, here is a list of ways to store bread:",
    "okay": "Okay, here's the updated answer.",
    "below": "Below is the revised response that addresses all of the points raised.",
    "find below": "Please find below the corrected version:",
    "following": "The following is an improved version of the original answer:",
    "this is": "This is the refined answer:",
    "list": "Here is a list of five ways to keep bread fresh:",
    "code": "Here's a Python function that does this:",
    "guide": "Here is a step-by-step guide to storing rye bread:",
    "happy to": "I'd be happy to help you with your bread!",
    "i will": "I will provide a detailed answer below:",
    "i have revised": "I have revised the response based on the feedback:",
    "based on": "Based on the feedback, the answer now says why.",
    "as requested": "As requested, the answer is shorter.",
    "great question": "Great question! Rye bread holds more water than wheat.",
    "thanks": "Thank you for your question about bread.",
    "let me help": "Let me help you with that.",
    "understood": "Understood.",
    "you go": "Here you go: a revised version of the text.",
    "quoted": '"Here is the rewritten response:"',
    "revised text": "Here is your revised text:",
    "response to": "Here is my response to the question about bread:",
}
CLOSERS = {
    "let me know": "Let me know if you have any other questions!",
    "please let me know": "Please let me know if you would like me to change anything.",
    "hope": "I hope this helps!",
    "hope this answers": "I hope that this explanation answers your question.",
    "hope and happy": "Hope this helps, and happy baking!",
    "feel free": "Feel free to ask if you need anything else.",
    "feel free after matter": "The bag is dry. If you have more questions, feel free to ask.",
    "reach out": "Don't hesitate to reach out if something is unclear.",
    "would you like": "Would you like me to explain how to freeze it?",
    "shall i": "Shall I write a shorter version?",
    "anything else": "Is there anything else I can help you with?",
    "here to help": "I'm here to help!",
    "happy to": "I'd be happy to provide more details.",
    "if you need": "If you need more information, I can go into detail.",
    "if you'd like": "If you'd like, I can also write a shorter version.",
    "note i": "Note: I have changed the order of the steps.",
    "note in brackets": "(Note: I've kept the tone of the original.)",
    "note version": "Note: The revised version is shorter and has a summary.",
    "note in bold": "**Note:** This response follows all of the criteria.",
    "revised version": "This revised version gives a reason for every claim.",
    "improved": "The improved response now includes a summary.",
    "addresses": "This response addresses the instruction and gives reasons.",
    "clear": "This answer provides a clear explanation for beginners.",
    "i have made": "I made sure that the response gives a reason for every claim.",
    "changes": "Changes made: a summary was added.",
    "word count": "(Word count: 152)",
    "words": "152 words",
    "end": "[End of response]",
    "modify": "Feel free to adjust this template to your needs.",
    "emphasis": "*Let me know if that works for you.*",
    "sign": "Good luck! Let me know how it goes.",
}
NO_OPENERS = {
    "matter": (ASK, "Keep it whole and cut it when you need it."),
    "here": (ASK, "Here the crust matters most: it keeps the crumb moist."),
    "here is why": (ASK, "Here is why rye stays fresh: its starch holds water."),
    "steps": (ASK, "Here are three things that matter:"),
    "bags": (ASK, "Below are the temperatures at which starch turns hard:"),
    "sure of": (ASK, "Sure signs of stale bread are a hard crust and a dry crumb."),
    "certain": (ASK, "Certainly the best place is a bread box."),
    "sure, but": (ASK, "Sure, a fridge is cold, but it dries the crumb."),
    "of course": (ASK, "Of course it dries out in the end, so freeze half of it."),
    "yes or no": ("Can I freeze rye bread?", "Absolutely! Slice it first."),
    "yes or no, certainly": ("Does rye keep longer than wheat?", "Certainly. It holds water."),
    "this is": (ASK, "This is a matter of moisture and air."),
    "the response of": (
        "How does the body answer a splinter?",
        "The response of the immune system has two parts.",
    ),
    "an answer": (ASK, "The answer depends on the flour."),
    "short answer": (ASK, "Short answer: in a linen bag, cut side down."),
    "answer with a number": ("What is 6 times 7?", "Answer: 42"),
    "final answer": ("What is 6 times 7?", "Final answer: 42"),
    "output": ("What does it print?", "Output:"),
    "example": ("What is a haiku?", "Here is an example:"),
    "draft": ("Why is my beer flat?", "Draft beer loses its gas when the line is warm."),
    "the following code": (
        "Why does this loop never end?",
        "The following code never changes `i`, so the test stays true.",
    ),
    "code fence": ("Write a loop.", "```python\nfor i in range(3):\n    print(i)\n```"),
    "story": (
        "Write a story about a baker.",
        "I have made a thousand loaves, and I will make a thousand more.",
    ),
    "i will in a letter": (LETTER, "I'd be happy to help you with the beans when you come."),
    "thanks in a reply": (
        "Reply to a customer who asks about delivery.",
        "Thank you for your question about our delivery times.",
    ),
    "sure in a message": ("Write a text message that accepts a plan.", "Sure! See you at six."),
    "dialogue": ("Write a dialogue in a shop.", "Customer: Sure! Here's my list."),
    "asked for": ('Begin with "Certainly!" and explain rye.', "Certainly! Rye holds water."),
    "given": (
        "Find the area of the triangle with the given instructions.",
        "Given the two sides, the area is half of their product.",
    ),
    "subject line": (LETTER, "Subject: A day in the allotment"),
    "heading": (ASK, "# How to keep rye bread fresh"),
    "version of python": ("Which Python do I have?", "Your version is shown by `python -V`."),
    "other language": ("Wie bleibt Brot frisch?", "Ganz lassen und in Leinen wickeln."),
    "final": (ASK, "Final proofing decides how long a loaf keeps."),
    "okay": (ASK, "Okay bread keeps two days; good rye keeps a week."),
    "here in person": (LETTER, "Hi Jo, here is my plan: come on Saturday."),
}
NO_CLOSERS = {
    "matter": (ASK, "Freeze what you cannot eat within five days."),
    "letter": (LETTER, "Let me know if you can come on Saturday."),
    "letter with help": (LETTER, "If you have any questions, just ask. I'd be happy to help."),
    "letter, hope": (LETTER, "I hope this helps you to find the gate."),
    "sign off": (LETTER, "Yours, Robin"),
    "recipe": (ASK, "Feel free to adjust the salt to your taste."),
    "note on matter": (ASK, "Note that a fridge makes bread stale sooner."),
    "note with colon": (ASK, "Note: the crumb must be cold before you cut it."),
    "immune": (
        "How does the body answer a splinter?",
        "This response follows within hours and fades after a week.",
    ),
    "stimulus": ("What is a reflex?", "This response provides the body with a quick way out."),
    "question to the reader": (
        "Write three questions for a survey on bread.",
        "Would you buy bread that was baked the day before?",
    ),
    "if": (ASK, "If you need it for longer, freeze it in slices."),
    "if, and my own way": (ASK, "If you want it crisp, I would toast it."),
    "if you want": (ASK, "If you want a crisp crust, warm it for five minutes."),
    "version": ("What is new in this program?", "This version runs on both systems."),
    "hope": (ASK, "There is hope for a stale loaf: steam it."),
    "changes": (ASK, "The changes in the crumb are slow below zero."),
    "words": ("How many words has a haiku?", "It has about 12 words in all."),
    "asked for": ('Explain rye and end with "I hope this helps!"', "I hope this helps!"),
    "dialogue": ("Write a dialogue at a help desk.", "Agent: Is there anything else I can do?"),
    "speech": ("Write a speech for a retirement.", "I'd be happy to help whoever takes my desk."),
    "code": ("Write a loop.", "```python\nprint('let me know')\n```"),
    "tell": (ASK, "Your nose will let you know when it has turned."),
    "luck": (ASK, "Good luck with your next loaf!"),
    "table": ("Compare two breads.", "| rye | a week |"),
    "solution": ("Solve x + 1 = 3.", "So the solution is x = 2."),
    "this list": ("Which birds are rare?", "This list grows by two species a year."),
    "answer": ("What is 6 times 7?", "The answer is 42."),
    "final answer": ("What is 6 times 7?", "The final answer is 42."),
    "new list": ("Reverse the list 1, 2.", "The new list is `[2, 1]`."),
    "greeting": ("Create a greeting for a buyer.", "If you need help, do not hesitate to write."),
    "edit": ("How do I undo a commit?", "The edits remain in your working tree."),
    "shall": (
        "Write the last line of a sonnet.",
        "Shall I not love thee when the leaves are down?",
    ),
    "latex": ("State Euler's identity.", r"\[ e^{i\pi} + 1 = 0 \]"),
    "story": ("Write a short story about a ghost.", "Let me know, said the ghost, when you wake."),
}


@pytest.mark.parametrize("line", OPENERS.values(), ids=OPENERS)
def test_a_first_line_about_the_response_is_chatter(line: str) -> None:
    assert opening_chatter(f"\n{line}\n\n{MATTER}", ASK) in line
    assert opening_chatter(f"\n{line}\n\n{MATTER}", ASK)


@pytest.mark.parametrize("line", CLOSERS.values(), ids=CLOSERS)
def test_a_last_line_about_the_response_is_chatter(line: str) -> None:
    found = closing_chatter(f"{MATTER}\n\n{line}\n", ASK)
    assert found
    assert found in line


@pytest.mark.parametrize(("instruction", "line"), NO_OPENERS.values(), ids=NO_OPENERS)
def test_a_first_line_of_matter_is_none(instruction: str, line: str) -> None:
    assert opening_chatter(f"{line}\n\n{MATTER}", instruction) == ""


@pytest.mark.parametrize(("instruction", "line"), NO_CLOSERS.values(), ids=NO_CLOSERS)
def test_a_last_line_of_matter_is_none(instruction: str, line: str) -> None:
    assert closing_chatter(f"{MATTER}\n\n{line}", instruction) == ""


@pytest.mark.parametrize(
    "line", ["Here is the email:", "Sure! Here's a draft of the email:", "Revised version:"]
)
def test_a_letter_may_not_be_announced(line: str) -> None:
    assert opening_chatter(f"{line}\n\nDear Jo,\ncome and see it.", LETTER) == line


@pytest.mark.parametrize("response", ["", "\n \n", "***", "`", "Yes"])
def test_a_response_without_a_line_of_words_has_none(response: str) -> None:
    assert opening_chatter(response, ASK) == closing_chatter(response, ASK) == ""


def test_only_the_first_and_the_last_line_are_looked_at() -> None:
    inside = f"{MATTER}\nHere is the improved response:\nI hope this helps!\n{MATTER}"
    assert opening_chatter(inside, ASK) == closing_chatter(inside, ASK) == ""


def test_a_long_line_costs_no_more_than_a_short_one() -> None:
    long = "Here is the, " * 200_000
    assert opening_chatter(long, ASK) == ""
    assert closing_chatter("if you have " * 200_000, ASK) == ""


def judged(response: str, *references: str) -> Any:
    pairs: Any = [
        {"id": f"r{i}", "instruction": ASK, "response": text} for i, text in enumerate(references)
    ]
    return RULES["no-chatter"].check(RuleInput(ASK, response, pairs))


def test_the_rule_fails_chatter_and_shows_it() -> None:
    found = judged(f"Here is the improved response:\n{MATTER}", MATTER)
    assert (found["criterion_id"], found["verdict"]) == ("no-chatter", "fail")
    assert found["evidence"] == "Here is the improved response:"
    assert "first line" in found["reason"]
    assert RULES["no-chatter"].must
    assert judged(MATTER, MATTER)["verdict"] == judged(MATTER)["verdict"] == "pass"
    assert judged(f"{MATTER}\nI hope this helps!")["reason"].startswith("Its last line")


def test_what_every_reference_does_is_allowed_and_nothing_else() -> None:
    opened, closed = f"Sure! Here is the list:\n{MATTER}", f"{MATTER}\nLet me know how it goes."
    assert judged(opened, opened, "Certainly!\nIn linen.")["verdict"] == "pass"
    assert judged(opened, opened, MATTER)["verdict"] == "fail"
    assert judged(closed, opened)["verdict"] == "fail"
    assert judged(closed, closed)["verdict"] == "pass"
