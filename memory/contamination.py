"""Contamination: texts that contain a prompt of a benchmark, on which nobody may train.

There are three tests, over lower-cased words: a shared run of 13 words (as for GPT-3; Brown et al.,
2020, appendix C), or all of a shorter prompt; shared runs of 8 words that cover half of a prompt;
a near-duplicate as in `memory.novelty`. A run of 13 words shared by chance, such as a proverb, is a
hit too. No test finds a paraphrased or translated prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from rapidfuzz.distance import LCSseq

from memory.novelty import NoveltyFilter

# The share of a prompt's words in shared short runs that is a hit.
COVERAGE = Fraction(1, 2)
# A ROUGE-L F1 over this is a near-duplicate.
NEAR_DUPLICATE_F1 = Fraction(7, 10)
# A shorter run is in many texts by chance.
_MIN_WORDS = 5
_MAX_EVIDENCE = 200
_UNKNOWN = "\0"

# Scripts without spaces, whose characters are words or syllables.
_SINGLE = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Word separators outside ASCII: signs, spaces, and punctuation of several scripts.
_SEPARATORS = "\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u037e\u055c-\u055e"
_SEPARATORS += "\u05be\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u2000-\u2bff\u3000-\u303f"
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(rf"[{_SINGLE}]|[^\x00-\x2f\x3a-\x60\x7b-\x7f{_SINGLE}{_SEPARATORS}]+")

# A place is text << 32 | word.
_SHIFT = 32


def word_tokens(text: str) -> list[str]:
    """Return the lower-cased words of `text`; for English, the tokens of `memory.novelty`.

    Other alphabets give whole words too, since a run of 13 letters means nothing. Chinese and
    Japanese give characters. Scripts without spaces, such as Thai, give few and long words.

    >>> word_tokens("Why do tides — Flut und Ebbe — follow 月亮?")
    ['why', 'do', 'tides', 'flut', 'und', 'ebbe', 'follow', '月', '亮']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


@dataclass(frozen=True)
class Hit:
    """A prompt that a text contains.

    `row` is the prompt's line or row in the file `benchmark`, from 1. `evidence` is the shared
    words. `how` names the test: "13-gram" or another `n`, "whole prompt" for one shorter than `n`,
    "8-gram coverage", or "near-duplicate".
    """

    benchmark: str
    row: int
    how: str
    evidence: str


class Contamination:
    """Checks instructions and responses against the prompts of benchmarks.

    For a text that contains several prompts, one is reported: one with a shared long run, else a
    whole one, else the one covered most, else the first near-duplicate.
    """

    def __init__(
        self,
        *,
        n: int = 13,
        short_n: int = 8,
        digest: Callable[[str], int] = hash,
    ) -> None:
        """Start without prompts.

        Args:
            n: A shared run of this many words is a hit.
            short_n: Words in the runs counted for `COVERAGE`; at most `n`.
            digest: Turns a run into a 64-bit number to look up. A match is always compared too.
        """
        if not _MIN_WORDS <= short_n <= n:
            raise ValueError(f"{_MIN_WORDS} <= short_n <= n must hold, not {short_n} and {n}")
        self._n, self._short_n = n, short_n
        # A prompt is a string with one character a word: short, and fast to slice and hash.
        self._ids: dict[str, str] = {}
        self._names: list[str] = [""]
        self._prompts: list[str] = []
        self._rows: list[tuple[str, int]] = []
        self._short = NGramIndex(self._prompts, short_n, digest, first_only=False)
        self._long = NGramIndex(self._prompts, n, digest, first_only=True)
        self._whole_prompts: dict[str, int] = {}
        self._whole_starts: set[str] = set()
        self._near_duplicates = NoveltyFilter(float(NEAR_DUPLICATE_F1))
        self._longest = 0

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self._prompts)

    def add(self, prompt: str, benchmark: str, row: int) -> None:
        """Add a prompt. One without words cannot be found and is skipped."""
        code = "".join(self._id(word) for word in word_tokens(prompt))
        if not code:
            return
        number = len(self._prompts)
        self._prompts.append(code)
        self._rows.append((benchmark, row))
        self._short.add(number)
        self._long.add(number)
        if len(code) < self._n:
            self._whole_prompts.setdefault(code, number)
            self._whole_starts.add(code[:_MIN_WORDS])
        if len(code) >= _MIN_WORDS:
            self._near_duplicates.add(_spell(code), str(number))
            self._longest = max(self._longest, len(code))

    def find_in_instruction(self, text: str) -> Hit | None:
        """Return the prompt that an instruction contains or nearly is, or None.

        A prompt of fewer than five words counts only if the instruction adds little to it.
        """
        words = word_tokens(text)
        code = self._encode(words)
        return (
            self._find_run(words, code)
            or self._find_tiny(words, code)
            or self._find_near_duplicate(words, code)
        )

    def find_in_response(self, text: str) -> Hit | None:
        """Return the prompt of five words or more that a response quotes or nearly is, or None."""
        words = word_tokens(text)
        code = self._encode(words)
        return self._find_run(words, code) or self._find_near_duplicate(words, code)

    def _id(self, word: str) -> str:
        known = self._ids.get(word)
        if known is None:
            known = self._ids[word] = chr(len(self._names))
            self._names.append(word)
        return known

    def _encode(self, words: list[str]) -> str:
        known = self._ids.get
        return "".join([known(word, _UNKNOWN) for word in words])

    def _find_run(self, words: list[str], code: str) -> Hit | None:
        """Find a prompt by a shared long run, by all of it, or by many shared short runs."""
        shared = self._short.starts(code)
        run = self._find_longest_run(code, shared) if shared else None
        if run is not None:
            number, start, end = run
            return self._hit(number, f"{self._n}-gram", words[start:end])
        return self._find_whole(words, code) or (
            self._find_covered(code, shared) if shared else None
        )

    def _find_longest_run(self, code: str, shared: list[int]) -> tuple[int, int, int] | None:
        """Return prompt, start and end of the longest run of n words or more in a prompt."""
        best = None
        reached = -1
        for i in shared:
            run = code[i : i + self._n]
            if i + self._n <= reached or len(run) < self._n:
                continue
            place = self._long.first(run)
            if place is None:
                continue
            number, at = place
            prompt = self._prompts[number]
            start, end = i, i + self._n
            at_end = at + self._n
            while start and at and code[start - 1] == prompt[at - 1]:
                start, at = start - 1, at - 1
            while end < len(code) and at_end < len(prompt) and code[end] == prompt[at_end]:
                end, at_end = end + 1, at_end + 1
            reached = end
            if best is None or end - start > best[2] - best[1]:
                best = (number, start, end)
        return best

    def _find_whole(self, words: list[str], code: str) -> Hit | None:
        """Return the longest prompt of fewer than n words that the text contains."""
        best = ""
        starts, where = self._whole_starts, 0
        for i in range(len(code) - _MIN_WORDS + 1):
            if code[i : i + _MIN_WORDS] not in starts:
                continue
            for end in range(i + max(_MIN_WORDS, len(best) + 1), i + self._n):
                if code[i:end] in self._whole_prompts and end <= len(code):
                    best, where = code[i:end], i
        if not best:
            return None
        return self._hit(
            self._whole_prompts[best], "whole prompt", words[where : where + len(best)]
        )

    def _find_covered(self, code: str, shared: list[int]) -> Hit | None:
        """Return the prompt that shared short runs cover most, if they cover enough."""
        places: defaultdict[int, list[int]] = defaultdict(list)
        for run in {code[i : i + self._short_n] for i in shared}:
            for number, at in self._short.places(run):
                places[number].append(at)
        best, best_number, best_spans = COVERAGE, -1, [(0, 0)]
        # In whole numbers for speed: a phrase in all prompts makes this loop long.
        reach = self._short_n * COVERAGE.denominator
        for number in sorted(places):
            size = len(self._prompts[number])
            if len(places[number]) * reach < COVERAGE.numerator * size:
                continue
            covered = merge_spans(places[number], self._short_n)
            share = Fraction(sum(end - start for start, end in covered), size)
            if share > best or (share == best and best_number < 0):
                best, best_number, best_spans = share, number, covered
        if best_number < 0:
            return None
        prompt = self._prompts[best_number]
        pieces = [self._names[ord(c)] for s, e in best_spans for c in (*prompt[s:e], _UNKNOWN)]
        return self._hit(best_number, f"{self._short_n}-gram coverage", pieces)

    def _find_tiny(self, words: list[str], code: str) -> Hit | None:
        """Return the prompt of fewer than five words that is nearly all of the text."""
        for size in range(min(_MIN_WORDS - 1, len(code)), 0, -1):
            if size < len(code) and 2 * size <= NEAR_DUPLICATE_F1 * (size + len(code)):
                return None
            for i in range(len(code) - size + 1):
                number = self._whole_prompts.get(code[i : i + size])
                if number is not None:
                    return self._hit(number, "near-duplicate", words[i : i + size])
        return None

    def _find_near_duplicate(self, words: list[str], code: str) -> Hit | None:
        """Return the first prompt of five or more words that the text is a near-duplicate of."""
        # The longest common subsequence is at most the whole prompt.
        if 2 * self._longest <= NEAR_DUPLICATE_F1 * (len(code) + self._longest):
            return None
        name = self._near_duplicates.collision(_spell(code))
        if name is None:
            return None
        first = int(name)
        return self._hit(first, "near-duplicate", _common_words(words, code, self._prompts[first]))

    def _hit(self, number: int, how: str, pieces: list[str]) -> Hit:
        evidence = " ".join(piece or "…" for piece in pieces).strip(" …")
        if len(evidence) > _MAX_EVIDENCE:
            evidence = evidence[: _MAX_EVIDENCE - 2] + " …"
        return Hit(*self._rows[number], how, evidence)


def _spell(code: str) -> str:
    """Spell a code as numbers, so that the novelty filter tokenizes words of any script."""
    return " ".join([str(ord(c)) for c in code])


def _common_words(words: list[str], code: str, prompt: str) -> list[str]:
    """Return the words of a text in its longest common subsequence with a prompt; "" for gaps."""
    shared: list[str] = []
    for step in LCSseq.opcodes([ord(c) for c in code], [ord(c) for c in prompt]):
        shared += words[step.src_start : step.src_end] if step.tag == "equal" else [""]
    return shared


class NGramIndex:
    """Finds runs of `size` words in a list of texts that have one character a word.

    Runs are looked up by digest and then compared, so that a collision of digests does no harm.
    """

    def __init__(
        self, texts: list[str], size: int, digest: Callable[[str], int], *, first_only: bool
    ) -> None:
        """`first_only`: store only the first place of a run."""
        self._texts, self._size, self._digest, self._first_only = texts, size, digest, first_only
        # By digest. Most runs occur once, so only the others have a list of places.
        self._places: dict[int, int | list[int]] = {}

    def add(self, number: int) -> None:
        """Add the runs of `texts[number]`."""
        text, size = self._texts[number], self._size
        for i in range(len(text) - size + 1):
            key, place = self._digest(text[i : i + size]), number << _SHIFT | i
            known = self._places.get(key)
            if known is None:
                self._places[key] = place
            elif self._first_only and self.first(text[i : i + size]) is not None:
                continue
            elif isinstance(known, list):
                known.append(place)
            else:
                self._places[key] = [known, place]

    def starts(self, text: str) -> list[int]:
        """Return where runs that may be known begin in `text`; the others are surely unknown."""
        size, digest, known = self._size, self._digest, self._places
        return [i for i in range(len(text) - size + 1) if digest(text[i : i + size]) in known]

    def places(self, run: str) -> Iterator[tuple[int, int]]:
        """Yield the text and word number of each place of the run, in the order added."""
        known = self._places.get(self._digest(run))
        if known is None:
            return
        for place in known if isinstance(known, list) else (known,):
            number, at = place >> _SHIFT, place & ((1 << _SHIFT) - 1)
            if self._texts[number].startswith(run, at):
                yield number, at

    def first(self, run: str) -> tuple[int, int] | None:
        """Return the first of `places`, or None."""
        return next(self.places(run), None)


def merge_spans(starts: list[int], size: int) -> list[tuple[int, int]]:
    """Return the spans that runs of `size` words from `starts` cover together, in order."""
    spans: list[tuple[int, int]] = []
    for start in sorted(starts):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], start + size)
        else:
            spans.append((start, start + size))
    return spans
