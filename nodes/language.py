"""The language a text is in, as far as it can be told for certain."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

# A shorter text tells too little of its language.
MIN_WORDS = 20
# Enough to tell a language; the rest costs time.
MAX_CHARS = 600
MIN_CONFIDENCE = 0.9
# Words a part of a text has, from which on it must be in the language of the whole.
_PART_WORDS = 10
_WORD = re.compile(r"\w+")
# Letters of scripts that leave no space between words; two of them are about a word.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# Languages so near to each other that a detector mistakes one for the other.
_NEAR = (
    ("da", "no", "nn"),
    ("hr", "sr", "bs"),
    ("id", "ms"),
    ("cs", "sk"),
    ("es", "an", "ext"),
    ("pt", "gl"),
    ("ca", "oc"),
    ("bg", "mk"),
    ("zh", "yue", "wuu"),
    ("nl", "af", "fy"),
    ("ku", "sdh"),
    ("ar", "ary", "arz"),
    ("hi", "mr", "ne", "sa", "gom"),
    ("zu", "xh"),
    ("st", "nso"),
    ("tr", "crh"),
    ("uz", "uzs"),
    ("tt", "ba"),
    ("en", "pcm"),
    ("it", "lij", "vec"),
    ("ht", "gcf", "gcr"),
    ("de", "lb"),
)
# No language at all, such as numbers.
_NONE = "zxx"
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


@lru_cache(maxsize=256)
def language_of(text: str) -> str | None:
    """The code of a text's language, the same one for near languages; None if it is not certain.

    A text whose longer parts are in several languages has none. Blocks; the first time for a
    second.
    """
    whole = _detect(text[:MAX_CHARS])
    if whole is None:
        return None
    parts = text[:MAX_CHARS].split("\n")
    longer = [part for part in parts if _has_words(part, _PART_WORDS)] if len(parts) > 1 else []
    return whole if all(_detect(part) in (whole, None) for part in longer) else None


def _detect(text: str) -> str | None:
    code, confidence = _detector().classify(text)
    if code == _NONE or confidence < MIN_CONFIDENCE:
        return None
    return next((near[0] for near in _NEAR if code in near), str(code))


@cache
def _detector() -> Any:
    # Imported here: only texts of some length need it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
