"""A task's words against dictionaries: `python -m eval.lexicon_check TASK --lexicons DIR`.

Prints how many words the dictionaries agree with, in each language, and every disagreement; the
last line is JSON. `--avoid FILE` also writes which siblings of the same class must not be
distractors (see `eval.lexicon_index.ambiguous_pairs`), as the table that a task file names under
`avoid`; other classes give distractors only where a class has too few.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.lexicon_index import LexiconIndex, ambiguous_pairs, fold_word, folded_forms
from eval.lexicons import Entry, detect_format, languages_of, read_entries
from mining.common.errors import InputError, PivotsError
from mining.common.files import write_text
from mining.common.task import Avoided, Concept, Task, read_task

AVOID_COLUMNS = ("source_lang", "target_lang", "id", "sibling", "evidence")


@dataclass(frozen=True)
class Agreement:
    """How the words of one language stand to the dictionaries from the pivot language.

    `known` concepts have a pivot word that the dictionaries list; of these, `main` have their word
    among its translations, `any_form` their word or an alternative. `disagreements` are the known
    ones whose word is not, each with the translations that are listed.
    """

    lang: str
    known: int
    main: int
    any_form: int
    disagreements: tuple[tuple[Concept, tuple[str, ...]], ...]


def agreement(task: Task, index: LexiconIndex, pivot: str, lang: str) -> Agreement:
    """Look up the pivot word of every concept and compare its translations into `lang`."""
    known = main = any_form = 0
    disagreements = []
    for concept in task.concepts:
        listed = index.translations(pivot, lang, concept.words[pivot])
        if not listed:
            continue
        known += 1
        any_form += bool(listed & set(folded_forms(concept, lang)))
        if fold_word(concept.words[lang], lang) in listed:
            main += 1
        else:
            disagreements.append((concept, tuple(sorted(listed))))
    return Agreement(lang, known, main, any_form, tuple(disagreements))


def read_folder(folder: Path) -> Iterator[Entry]:
    """Entries of every dictionary below a folder whose name begins with its languages (en-fr.tsv).

    Raises InputError where there is none, or a line cannot be read.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and languages_of(path)]
    if not paths:
        raise InputError(f"{folder}: no dictionary named like en-fr.tsv")
    for path in paths:
        languages = languages_of(path)
        assert languages is not None
        for item in read_entries(path, detect_format(path), *languages):
            if not isinstance(item, Entry):
                raise InputError(f"{path}:{item.line}: {item.reason}")
            yield item


def same_class(task: Task, pairs: dict[Avoided, str]) -> dict[Avoided, str]:
    """The ambiguous pairs whose two concepts are of one class."""
    cls = {concept.id: concept.cls for concept in task.concepts}
    return {key: evidence for key, evidence in pairs.items() if cls[key[2]] == cls[key[3]]}


def avoid_table(pairs: dict[Avoided, str]) -> str:
    """The ambiguous pairs as the text of a task's `avoid` table."""
    lines = ["\t".join(AVOID_COLUMNS)]
    lines += ["\t".join((*key, evidence)) for key, evidence in pairs.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 whatever the agreement, else the exit code of the error."""
    parser = argparse.ArgumentParser(prog="python -m eval.lexicon_check", description=__doc__)
    parser.add_argument("task", type=Path, help="task file (YAML)")
    parser.add_argument("--lexicons", type=Path, required=True, help="folder of dictionaries")
    parser.add_argument("--pivot", default="en", help="language whose words are looked up")
    parser.add_argument("--avoid", type=Path, help="file to write the ambiguous pairs to")
    arguments = parser.parse_args(argv)
    try:
        _report(read_task(arguments.task), arguments)
    except PivotsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _report(task: Task, arguments: argparse.Namespace) -> None:
    pivot: str = arguments.pivot
    if pivot not in task.languages:
        raise InputError(f"--pivot {pivot}: the task has {', '.join(task.languages)}")
    index = LexiconIndex(read_folder(arguments.lexicons))
    results = [
        agreement(task, index, pivot, lang)
        for lang in task.languages
        if lang != pivot and (pivot, lang) in index.language_pairs()
    ]
    for result in results:
        for concept, listed in result.disagreements:
            forms = folded_forms(concept, result.lang)
            mark = "alternative listed" if set(forms) & set(listed) else "not listed"
            words = f"{concept.words[pivot]} -> {concept.words[result.lang]}"
            print(f"{result.lang} {concept.id}: {words} ({mark}); listed: {', '.join(listed)}")
    print(f"{'language':<10}{'concepts':>10}{'known':>8}{'word':>8}{'or alternative':>16}")
    summary = {}
    for r in results:
        shares = [n / r.known if r.known else 0.0 for n in (r.main, r.any_form)]
        print(
            f"{r.lang:<10}{len(task.concepts):>10}{r.known:>8}{shares[0]:>8.1%}{shares[1]:>16.1%}"
        )
        summary[r.lang] = {"known": r.known, "main": r.main, "main_or_alternative": r.any_form}
    pairs = same_class(task, ambiguous_pairs(task.concepts, task.languages, index))
    if arguments.avoid is not None:
        write_text(arguments.avoid, avoid_table(pairs))
    counts = {name: sum(e == name for e in pairs.values()) for name in ("direct", "through")}
    print(
        json.dumps(
            {
                "name": "lexicon_check",
                "task": task.name,
                "concepts": len(task.concepts),
                "languages": summary,
                "ambiguous_pairs": counts,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
