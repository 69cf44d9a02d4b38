"""What the faulty endpoint says to a request: the good answer, or one of the ways to spoil it."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web

ROOT = Path(__file__).resolve().parent.parent
# Behind, since the tests have modules of the same names as some here.
sys.path += [str(ROOT), str(ROOT / "tests")]

import fakes  # noqa: E402
from fakes import stage_of, words  # noqa: E402

STATUSES = {"429": 429, "429_retry_after": 429, "500": 500, "503": 503}
BROKEN = ("hang", "reset", "half_body")
TRANSPORT = (*STATUSES, *BROKEN)
# The first two hold a good answer; the others hold none, marked so that it can be told.
CONTENT = (
    *("think", "fenced", "invalid_json", "wrong_shape", "empty", "null", "refusal"),
    *("content_filter", "length"),
)
MARK = "BADMARK"
# The share of proposals that several seeds make, and of instructions that a judge fails.
COMMON, SCREENED = 1 / 3, 0.3
QUALITIES = """
    gives a reason for every claim; closes with a short summary; explains each step before the next;
    uses short sentences throughout; begins with the main answer; compares two ways of doing it;
    warns of a common mistake; keeps a friendly and calm tone
"""


def drawn(*parts: str) -> float:
    """A number from 0 to 1 that the same parts always give."""
    digest = sha256("\x1f".join(parts).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def answer(body: dict[str, Any], reject: float) -> dict[str, Any]:
    """The good answer to a request: candidates are failed by hash, proposals collide at times."""
    stage = stage_of(body)
    prompt = "\n".join(m["content"] for m in body["messages"])
    content = fakes.answer(stage, prompt, body.get("seed", 0))
    if stage == "critique":
        response = fakes.tagged(prompt, "response")[-1]
        failed = drawn(response, "reject") < reject
        rows = content["verdicts"]
        if failed and rows:
            rows[int(drawn(response, "which") * len(rows))]["verdict"] = "fail"
            rows[0]["verdict"] = "fail"
        if drawn(prompt, "evidence") < 0.1:
            rows[-1]["evidence"] = "words that are nowhere"
    if stage == "screen":
        _fail_instructions(content, prompt, body["model"])
    if stage == "propose":
        content["instructions"] = [_with_common(text) for text in content["instructions"]]
    if stage == "extract":
        texts = [" ".join(q.split()) for q in QUALITIES.split(";")]
        for i, one in enumerate(content["characteristics"]):
            one["text"] = texts[int(drawn(prompt, str(i)) * len(texts))]
        if "instruction_characteristics" in prompt:
            quote = " ".join(fakes.tagged(prompt, "instruction")[-1].split()[:4])
            content["instruction_characteristics"] = [
                {"text": text, "quote": quote, "must": True}
                for text in ("states the case it is for", "asks for one thing that can be checked")
            ]
    return content


def _with_common(text: str) -> str:
    """A proposal, or one of twelve that several seeds make."""
    common = drawn(text, "common") < COMMON
    return words(f"common {int(drawn(text) * 12)}", 12) + "?" if common else text


def _fail_instructions(content: dict[str, Any], prompt: str, juror: str) -> None:
    """Fail some instructions by hash; jurors differ at times."""
    for item, text in zip(
        content["instructions"], fakes.tagged(prompt, "instruction"), strict=True
    ):
        share = SCREENED + 0.2 * (drawn(text, juror, "errs") - 0.5)
        if item["verdicts"] and drawn(text, "screened") < share:
            item["verdicts"][0]["verdict"] = "fail"


def spoilt(kind: str, content: dict[str, Any], plain: bool) -> tuple[dict[str, Any], str]:
    """The message and finish reason of an answer, as JSON or plain text, with a fault of content.

    Where a structured answer would be no JSON or of another shape, a text holds thoughts alone.
    """
    text, language = json.dumps(content), "json"
    bad = json.dumps({key: f"{MARK} {value}" for key, value in content.items()})
    no_json, other = bad[:-2] + ", oh", json.dumps({key: [{MARK: 1}] for key in content})
    if plain:
        text, language = fakes.as_text(content), ""
        bad, other = f"{MARK} {text}", f"<think>{MARK} so it is, but for what?</think>"
        no_json = f"{other}\n"
    message: dict[str, Any] = {
        "ok": {"content": text},
        "think": {"content": f'<think>{{"a": "{MARK}"}} hm</think>\n{text}'},
        "fenced": {"content": f"```{language}\n{text}\n```"},
        "invalid_json": {"content": no_json},
        "wrong_shape": {"content": other},
        "empty": {"content": ""},
        "null": {"content": None},
        "refusal": {"content": None, "refusal": f"I will not. {MARK}"},
        "length": {"content": bad[: len(text) // 2]},
    }[kind]
    if plain and "thoughts" in content:
        message["reasoning_content"] = content["thoughts"]
    return message, "length" if kind == "length" else "stop"


def completion(kind: str, body: dict[str, Any], content: dict[str, Any]) -> web.Response:
    """A chat completion; its usage follows from the lengths of the texts."""
    message, finish = spoilt(kind, content, fakes.is_text(body))
    prompt = sum(len(m["content"]) for m in body["messages"]) // 4
    written = len(message["content"] or "") // 4
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt, "completion_tokens": written}
    return web.json_response(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage | {"total_tokens": prompt + written},
        }
    )


def made(stage: str, body: dict[str, Any], content: dict[str, Any]) -> dict[str, str]:
    """What a written response is for and what it is, as hashes, for checking rows."""
    if stage not in ("generate", "refine", "answer"):
        return {}
    asked = body["messages"][-1]["content"]
    instruction = asked if stage == "answer" else fakes.tagged(asked, "instruction")[-1]
    return {"about": hashed(instruction), "made": hashed(content["response"])}


def hashed(text: str) -> str:
    """A short hash of a text without the white space around it."""
    return sha256(text.strip().encode("utf-8", "replace")).hexdigest()[:16]


def reply_to(kind: str, body: dict[str, Any], content: dict[str, Any]) -> web.Response:
    """The response of a kind that is sent whole."""
    if kind in STATUSES:
        headers = {"Retry-After": "1"} if kind == "429_retry_after" else {}
        return fakes.error(STATUSES[kind], f"made to fail: {kind}", **headers)
    if kind == "content_filter":
        return fakes.error(400, "withheld by the content management policy", "content_filter")
    return completion(kind, body, content)
