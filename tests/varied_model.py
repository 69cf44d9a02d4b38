"""A model of varied answers, and what it is asked about: good, poor, malformed, cut, empty.

Every answer is a function of the request alone, whatever the order of requests and whichever
process asks, so runs against it can be compared with files that were written long ago. It shares
nothing with `fakes.answer`, so that a change there changes none of those files.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web

from nodes.llm.endpoint import PROBE_PROMPT

# A name that no machine has: requests reach the endpoint as their proxy, whatever its port is.
BASE_URL = "http://refloom.test/v1"
JUDGE_BASE_URL = "http://judge.test/v1"

REFERENCES: list[dict[str, Any]] = [
    {
        "id": "bread",
        "instruction": "My sourdough starter smells of vinegar. What should I do?",
        "response": "A sharp smell means that it is hungry, because acid builds up once the flour "
        "is used. Throw away all but a spoonful and feed it with equal weights of flour and water. "
        "Repeat this every twelve hours for two days. To sum up: feed it more often, and the smell "
        "will turn mild again.",
        "license": "MIT",
    },
    {
        "id": "moon",
        "instruction": "Why does the same side of the moon always face the earth?",
        "response": "The moon turns once on its axis in the time of one orbit. That is no "
        "accident: the earth's pull raised a bulge, and friction slowed the spin until the bulge "
        "stayed in line. The same has happened to most large moons. So the face we see is fixed, "
        "apart from a slow rocking.",
        "license": "CC BY 4.0",
    },
    {
        "id": "bike",
        "instruction": "How do I put a bicycle chain back on without tools?",
        "response": "Shift to the smallest cog first, since that leaves the chain slack. Push the "
        "derailleur forward with one hand, and lay the chain over the teeth of the front ring with "
        "the other. Turn the pedal backwards by half a turn. Check at the end that it runs "
        "straight, before you ride away.",
    },
    {
        "id": "letter",
        "messages": [
            {"role": "user", "content": "I have to turn down a job offer."},
            {"role": "assistant", "content": "Do you want to keep in touch with the company?"},
            {"role": "user", "content": "Yes. Please write the email to the recruiter."},
            {
                "role": "assistant",
                "content": "Dear Ms Olsen, thank you for the offer and for the open talks. I have "
                "decided to stay where I am, because a project needs me until spring. I was "
                "impressed by your team, and I would be glad to hear of later openings. "
                "With kind regards, Robin",
            },
        ],
    },
]
SEEDS = (
    "How can I keep a rye loaf fresh for a week?",
    "What makes the tides higher at some times of the month?",
    "Which oil is right for a bicycle that is ridden in the rain?",
    "How do I ask my manager for a pay rise in writing?",
    "My sourdough starter smells of vinegar. What should I do?",
    "Which flour makes a wheat sourdough rise best?",
    "Why do we see only phases of the moon and not all of it?",
    "How do I mend a flat bicycle tyre at the roadside?",
    "Please write an email that declines an invitation to a conference.",
    "How long can bread dough rest in a cold kitchen?",
    "How does the earth's orbit decide the length of the seasons?",
    "What should I check on a bicycle before a long ride?",
)
PAIRS = [(row["instruction"], row["response"]) for row in REFERENCES if "instruction" in row] + [
    (row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in REFERENCES[3:]
]

WORDS = """
    quiet morning garden window simple method careful reader second answer better reason clear
    example number table result first letter market little system winter summer water paper
    bridge travel signal common public record gentle narrow market doctor engine family corner
    advice budget camera dinner effort forest ground height island jacket kitchen ladder mirror
""".split()  # noqa: SIM905
# Of random seed 0 every reference can be learned from, though not at the first ask.
DRAW = 24
# What is asked for with more room than this is not cut.
ROOMS = {"extract": 1200, "propose": 1500, "generate": 3000, "refine": 4000, "answer": 3000}
# So that every rule that can be mended has a response to find wanting.
POOR = 7
QUALITIES = (
    ("gives a reason for every claim", True),
    ("closes with a short summary", False),
    ("names one exception", True),
    ("puts the steps in the order in which they are done", True),
    ("speaks to its reader in a calm tone", False),
)


def number(*parts: object) -> int:
    """A number that the parts decide."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:6], "big")


def sentence(count: int, *parts: object) -> str:
    """So many words that the parts decide, as a sentence without its full stop."""
    return " ".join(WORDS[number(i, *parts) % len(WORDS)] for i in range(count)).capitalize()


def blocks(prompt: str, tag: str) -> list[str]:
    """What stands between the tags of a name."""
    found = re.findall(rf"<({tag}(?:-\w+)?)(?: [^>]*)?>\n(.*?)\n</\1>", prompt, re.DOTALL)
    return [text for _, text in found]


def prompt_of(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


def stage_of(body: dict[str, Any]) -> str:
    """The stage of a request: its schema's or tool's name, or what the prompt says of both."""
    if body["messages"][-1]["content"].startswith(PROBE_PROMPT):
        return "probe"
    if body.get("logprobs"):
        return "question"
    shape = body.get("response_format", {})
    if shape.get("type") == "json_schema":
        return str(shape["json_schema"]["name"])
    if body.get("tools"):
        return str(body["tools"][0]["function"]["name"])
    named = re.search(r"JSON object, named (\w+)", prompt_of(body))
    if named is not None:
        return named.group(1)
    # Plain text: only a refinement shows verdicts or feedback, and a bare answer shows nothing.
    if len(body["messages"]) == 1 and not blocks(prompt_of(body), "instruction"):
        return "answer"
    shown = re.search(r"^<(?:verdict|feedback)[ >-]", prompt_of(body), re.MULTILINE)
    return "refine" if shown else "generate"


def is_text(body: dict[str, Any]) -> bool:
    """Whether a request asks for plain text."""
    shaped = any(name in body for name in ("response_format", "tools", "logprobs"))
    return not shaped and "JSON object, named" not in prompt_of(body)


def respond(body: dict[str, Any], count: int = 0) -> web.Response:
    """The answer to a request, for `fakes.Endpoint`; `count` makes no difference."""
    stage = stage_of(body)
    if stage == "probe":
        return _completion(body, "ok" if is_text(body) else '{"ok": true}')
    if stage == "question":
        return _completion(body, "Yes", logprobs=_logprobs(body))
    found = ANSWERS[stage](body, prompt_of(body))
    answer = _plain(found) if is_text(body) else json.dumps(found)
    fault = number(body.get("seed"), stage, DRAW) % 24
    if fault in (0, 1) and is_text(body):
        return _completion(body, "<think>So it is, but for what?</think>\n")
    if fault == 0:
        return _completion(body, "I would rather answer in prose.")
    if fault == 1:
        return _completion(body, '{"unasked": ["for"]}')
    if fault == 2 and _room(body) <= ROOMS.get(stage, 2000):
        return _completion(body, answer[: len(answer) // 2], finish="length")
    if fault == 3:
        return _completion(body, "")
    if fault == 4:
        return _completion(body, None, refusal="I cannot help with that.")
    if fault == 5:
        fence = "" if is_text(body) else "json"
        return _completion(body, f"<think>So it is.</think>\n```{fence}\n{answer}\n```")
    return _completion(body, answer, thoughts=found.get("thoughts"))


def _plain(found: dict[str, Any]) -> str:
    """A response as plain text, with its plan before it, if it has one."""
    plan = "\n".join(found.get("plan", ()))
    return f"<plan>\n{plan}\n</plan>\n{found['response']}" if plan else str(found["response"])


def _room(body: dict[str, Any]) -> int:
    """The most tokens that an answer may have."""
    return int(body.get("max_tokens") or body.get("max_completion_tokens") or 1 << 20)


def with_a_plain_judge(body: dict[str, Any], count: int = 0) -> web.Response:
    """The same; but model `j` is served without schema, tools, JSON mode and `max_tokens`."""
    if body["model"] != "j":
        return respond(body, count)
    shape = body.get("response_format", {}).get("type")
    for name, refused in (
        ("json_schema", shape == "json_schema"),
        ("tools", bool(body.get("tools"))),
        ("json_object", shape == "json_object"),
        ("max_tokens", "max_tokens" in body),
    ):
        if refused:
            error = {"message": f"{name} is not supported", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
    return respond(body, count)


def _completion(
    body: dict[str, Any],
    text: str | None,
    *,
    finish: str = "stop",
    refusal: str | None = None,
    logprobs: dict[str, Any] | None = None,
    thoughts: str | None = None,
) -> web.Response:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": refusal}
    if thoughts is not None:
        message["reasoning_content"] = thoughts
    if body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": text}
        message["tool_calls"] = [{"id": "t", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
    return web.json_response({**whole, "choices": [choice], "usage": usage})


def _logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """Likely yes for a reference's own response, else as the prompt decides."""
    prompt = prompt_of(body)
    own = (blocks(prompt, "instruction")[-1], blocks(prompt, "response")[-1:]) in [
        (instruction, [response]) for instruction, response in PAIRS
    ]
    no = 0.5 + number(prompt, "odds") % 40 / 8 if not own else 4.0
    tops = [{"token": "Yes", "logprob": -0.125}, {"token": "No", "logprob": -no}]
    return {"content": [{**tops[0], "top_logprobs": tops}]}


def _extract(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    instruction, response = blocks(prompt, "instruction")[-1], blocks(prompt, "response")[-1]
    topical = {
        "text": "explains the moon and the earth",
        "quote": " ".join(response.split()[:5]),
        "must": True,
    }
    found = [topical]
    # Of one reference only what names its topic, until it is asked for something else.
    if "moon" not in instruction or "explains the moon" in prompt:
        pieces = response.split()
        for place, (text, must) in enumerate(QUALITIES):
            if number(instruction, text) % 3:
                quote = " ".join(pieces[4 * place : 4 * place + 6])
                found.append({"text": f"The response {text}.", "quote": quote, "must": must})
        found.append({"text": "is written in verse", "quote": "no such words", "must": True})
        found = found[number(instruction) % 2 :]
    answer: dict[str, Any] = {
        "subject_areas": [sentence(2, instruction, "area")],
        "relevant_skills": [sentence(3, instruction, "skill"), "saying why"],
        "characteristics": found,
    }
    if "instruction_characteristics" in prompt:
        quote = " ".join(instruction.split()[:4])
        answer["instruction_characteristics"] = [
            {"text": text, "quote": quote, "must": must}
            for text, must in (("states the case it is for", True), ("asks for one thing", False))
        ]
    return answer


def _propose(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    count = int(re.findall(r"(\d+) instructions", prompt)[0])
    found = [f"{sentence(11, body.get('seed'), i)}?" for i in range(count)]
    for place in range(count):
        odd = number(body.get("seed"), place, "odd") % 8
        if odd == 0:
            found[place] = blocks(prompt, "seed")[-1]
        elif odd == 1:
            found[place] = "Which of these quiet gardens has a narrow bridge over its water?"
        elif odd == 2:
            found[place] = f"Answer the given seed: {found[place]}"
    return {"instructions": found}


def _screen(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    found = re.findall(r'<(instruction(?:-\w+)?) number="(\d+)">\n(.*?)\n</\1>', prompt, re.DOTALL)
    own = {instruction for instruction, _ in PAIRS}
    items = []
    for _, place, text in found:
        verdicts = []
        for id_ in re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt):
            draw = number(body.get("seed"), id_, text) % 20
            verdict = "pass" if text in own or draw < 17 else "fail"
            evidence = "words that are not there" if draw == 19 else " ".join(text.split()[:4])
            verdicts.append(
                {
                    "criterion_id": id_,
                    "reason": sentence(8, id_, text),
                    "evidence": evidence,
                    "verdict": verdict,
                }
            )
        items.append({"number": int(place), "verdicts": verdicts})
    return {"instructions": items}


def _text(key: str, prompt: str, odds: int) -> str:
    """A response: every so often one that a rule has something to say about."""
    good = f"{sentence(22, key, 1)}. {sentence(18, key, 2)}. {sentence(14, key, 3)}."
    poor = (
        f"{good} After that it is best to look at the",
        f"I'm sorry, but I can't help with that. {good}",
        f"{good} Sign it with [insert your name here].",
        f"{good} {PAIRS[number(key) % len(PAIRS)][1]}",
        f"{good} This meets the criteria, as the reference response does.",
        f"{good} TODO: say more.",
        "No.",
        f"{good}\n```\nprint(1)",
        f"{good} {' '.join(sentence(30, key, i) + '.' for i in range(12))}",
    )
    place = number(key, "poor", POOR) % odds
    return poor[place] if place < len(poor) else good


def _generate(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    return {"response": _text(_data_of(body, prompt), prompt, 18)}


def _data_of(body: dict[str, Any], prompt: str) -> str:
    """The seed and the data of a request to a writer: a prompt's words make no difference."""
    tags = ("instruction", "response", "verdict", "feedback")
    return f"{body.get('seed')} {[blocks(prompt, tag) for tag in tags]}"


def _refine(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    key = _data_of(body, prompt)
    answer: dict[str, Any] = {"plan": ["change this"], "response": _text(key, prompt, 30)}
    if "original_strengths" in json.dumps(body):
        answer = {
            "original_strengths": [sentence(3, key, "strength")],
            "improvement_opportunities": [sentence(3, key, "chance")],
            "relevant_feedback": [],
            "rationale": sentence(6, key, "why"),
            **answer,
        }
    return answer


def _answer(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    """A bare answer; some come without thoughts, or with thoughts of criteria that nobody named."""
    key = f"{body.get('seed')} {prompt}"
    answer: dict[str, Any] = {"response": _text(key, prompt, 24)}
    odd = number(key, "thoughts") % 8
    if odd:
        talk = " The criteria ask for more." if odd == 1 else ""
        answer["thoughts"] = f"{sentence(9, key, 'thought')}.{talk}"
    return answer


def _critique(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    instruction, response = blocks(prompt, "instruction")[-1], blocks(prompt, "response")[-1]
    own = (instruction, response) in PAIRS
    verdicts: list[Any] = []
    for id_ in re.findall(r'<criterion(?:-\w+)? id="([^"]+)"', prompt):
        draw = number(body.get("seed"), id_, response) % 20
        verdict = "pass" if own or draw < 12 else "fail"
        evidence = " ".join(response.split()[:4])
        if draw == 19:
            verdict = "perhaps"
        elif draw == 18:
            evidence = "words that are not there"
        elif draw == 17 and verdict == "fail":
            evidence = ""
        elif draw == 16:
            verdict = "not_applicable"
        reason = f"It is so with {sentence(3, id_, response)}"
        one = {"criterion_id": id_, "reason": reason, "evidence": evidence, "verdict": verdict}
        verdicts.append(one if draw != 15 else {"criterion_id": id_})
    return {"verdicts": verdicts}


def _feedback(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    return {"feedback": [f"{sentence(5, body.get('seed'), i)}." for i in range(3)]}


def _compare(body: dict[str, Any], prompt: str) -> dict[str, Any]:
    a, b = blocks(prompt, "response")
    better = number(min(a, b), max(a, b)) % 3
    winner = "tie" if better == 2 else "AB"[(better + (a > b)) % 2]
    return {"reason": sentence(5, a, b), "winner": winner}


ANSWERS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "extract": _extract,
    "propose": _propose,
    "screen": _screen,
    "generate": _generate,
    "refine": _refine,
    "answer": _answer,
    "critique": _critique,
    "feedback": _feedback,
    "compare": _compare,
}


def canonical(body: dict[str, Any]) -> str:
    """A request as text that does not depend on the order of its keys."""
    return json.dumps(body, sort_keys=True, ensure_ascii=False)


def proxied(url: str) -> dict[str, str]:
    """The environment in which every http address is answered by the endpoint at `url`."""
    proxy = url.removesuffix("/v1")
    return {"http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": "", "NO_PROXY": ""}


def write_files(folder: Path, seeds: int = 5) -> None:
    """Write `references.jsonl` and `seeds.txt`; more seeds than there are are numbered."""
    rows = "".join(json.dumps(row) + "\n" for row in REFERENCES)
    (folder / "references.jsonl").write_text(rows, encoding="utf-8")
    texts = [SEEDS[i] if i < len(SEEDS) else f"{sentence(9, 'seed', i)}?" for i in range(seeds)]
    (folder / "seeds.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def calls_in(directory: Path) -> Iterator[tuple[str, str]]:
    """The stage and the key of every paid call in the journals below a directory."""
    for path in sorted(directory.rglob("journal.sqlite")):
        with closing(sqlite3.connect(path)) as connection:
            for key, stage in connection.execute("SELECT key, stage FROM calls"):
                yield stage, key.hex()
