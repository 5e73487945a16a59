"""Finding words in text: our trie against Aho-Corasick and regular expressions, same findings.

    python -m launch.bench.matching

Generated text, half of it words between spaces, half Han characters without any. The regular
expression is an alternation of all words, the longest first, tried at every place; the shorter
words at a place are beginnings of the one found. It gets a small part of the text, since it is
slow. One core.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable

import ahocorasick_rs
import numpy as np

from launch.bench.timing import medians, report
from mining.kernels.match import fold, word_characters
from mining.settings import WordsSettings
from mining.word_postings import WordFinder

# What a prototype with an Aho-Corasick automaton reached for 2,000 words: 49 MB/s against 0.5.
TARGET = 98.0
VOCABULARY = 60_000
WORDS_PER_DOCUMENT = 300


def make_text(n_bytes: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Documents of about `n_bytes` in all, and the vocabulary they are made of."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkéà"))
    han = np.array([chr(0x4E00 + k) for k in range(2000)])
    latin = {"".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(VOCABULARY // 2)}
    chinese = {"".join(rng.choice(han, rng.integers(1, 4))) for _ in range(VOCABULARY // 2)}
    vocabularies = [(sorted(latin), " "), (sorted(chinese), "")]
    documents: list[str] = []
    size = 0
    while size < n_bytes:
        words, space = vocabularies[len(documents) % 2]
        ranks = np.minimum(rng.zipf(1.3, WORDS_PER_DOCUMENT) - 1, len(words) - 1)
        documents.append(space.join(words[rank] for rank in ranks))
        size += len(documents[-1].encode())
    return documents, [word for words, _ in vocabularies for word in words]


def find_by_trie(finder: WordFinder, documents: list[str]) -> list[set[int]]:
    """The words of each document, our way."""
    found, ends = finder.find(documents)
    return [set(part.tolist()) for part in np.split(found, ends[1:-1])]


def find_by_automaton(
    automaton: ahocorasick_rs.AhoCorasick, documents: list[str]
) -> list[set[int]]:
    """The words of each document by an Aho-Corasick automaton and a check of the borders."""
    result = []
    for document in documents:
        text = fold(document, False)
        found: set[int] = set()
        for word, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
            if word not in found and stands_alone(text, start, end):
                found.add(word)
        result.append(found)
    return result


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word of a script with spaces runs on at either end of text[start:end]."""
    joins = joining()
    if start > 0 and joins[ord(text[start])] and joins[ord(text[start - 1])]:
        return False
    return not (end < len(text) and joins[ord(text[end])] and joins[ord(text[end - 1])])


@functools.cache
def joining() -> list[bool]:
    """`word_characters` as a list, which is quicker to look one up in."""
    found: list[bool] = word_characters().tolist()
    return found


class Expression:
    """Finds words by one regular expression."""

    def __init__(self, words: list[str]) -> None:
        falling = sorted(words, key=len, reverse=True)
        self._expression = re.compile(f"(?=({'|'.join(map(re.escape, falling))}))")
        places = {word: place for place, word in enumerate(words)}
        self._beginnings = {
            word: [(places[word[:n]], n) for n in range(1, len(word) + 1) if word[:n] in places]
            for word in words
        }

    def find(self, documents: list[str]) -> list[set[int]]:
        """The words of each document."""
        result = []
        for document in documents:
            text = fold(document, False)
            found: set[int] = set()
            for match in self._expression.finditer(text):
                for word, length in self._beginnings[match[1]]:
                    if word not in found and stands_alone(
                        text, match.start(), match.start() + length
                    ):
                        found.add(word)
            result.append(found)
        return result


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--expression_documents", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    documents, vocabulary = make_text(int(options.megabytes * 1e6), rng)
    few = documents[: options.expression_documents]
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    few_megabytes = sum(len(document.encode()) for document in few) / 1e6
    rates: dict[str, dict[str, float]] = {}
    for n_words in options.words:
        words = sorted(rng.choice(vocabulary, size=n_words, replace=False).tolist())
        finder = WordFinder(words, WordsSettings())
        automaton = ahocorasick_rs.AhoCorasick(words)
        expression = Expression(words)
        found = find_by_trie(finder, documents)
        assert found == find_by_automaton(automaton, documents), "the automaton finds others"
        assert found[: len(few)] == expression.find(few), "the expression finds others"
        ways: dict[str, Callable[[], object]] = {
            "trie": functools.partial(finder.find, documents),
            "aho_corasick": functools.partial(find_by_automaton, automaton, documents),
            "expression": functools.partial(expression.find, few),
        }
        seconds = medians(ways, options.repeats)
        rates[str(n_words)] = {
            name: (few_megabytes if name == "expression" else megabytes) / taken
            for name, taken in seconds.items()
        }
        listed = ", ".join(f"{name} {rate:.3g}" for name, rate in rates[str(n_words)].items())
        print(f"{n_words} words, MB/s: {listed}", flush=True)
    first = rates[str(options.words[0])]
    report(
        "matching",
        first["trie"] / first["expression"],
        TARGET,
        ratios={
            n: {other: round(rate["trie"] / rate[other], 1) for other in rate if other != "trie"}
            for n, rate in rates.items()
        },
        megabytes=round(megabytes, 1),
        documents=len(documents),
        megabytes_per_second=rates,
    )


if __name__ == "__main__":
    main()
