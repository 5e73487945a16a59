"""Parallel sentences: FLORES's folder layout, or a TSV file with a column for each language."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eval.sentence_settings import SentencesSettings
from mining.common.errors import InputError, SettingsError

Sentences = Mapping[str, list[str]]

MIN_SENTENCES = 2


def sentence_files(settings: SentencesSettings) -> dict[str, Path]:
    """The files that hold the languages asked for, by language; a TSV file has the name `tsv`.

    Raises SettingsError where no path is set, InputError where a file is missing.
    """
    if settings.path is None:
        raise SettingsError(
            "sentences.path: found null, expected a FLORES folder or a TSV file of parallel "
            "sentences",
        )
    path = Path(settings.path)
    if path.is_file():
        return {"tsv": path}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder (sentences.path)")
    folder = path / settings.split
    if not folder.is_dir():
        found = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())) or "no folder"
        raise InputError(f"{path}: holds no part '{settings.split}' (sentences.split), but {found}")
    return {lang: _flores_file(settings, folder, lang) for lang in settings.languages}


def _flores_file(settings: SentencesSettings, folder: Path, lang: str) -> Path:
    names = [f"{code}.{settings.split}" for code in settings.file_codes(lang)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = len(list(folder.glob(f"*.{settings.split}")))
    raise InputError(
        f"{folder}: holds no {' or '.join(names)} for the language '{lang}' (it has {there} files "
        f"*.{settings.split}); name its file code in sentences.files, or leave the language out"
    )


def read_sentences(settings: SentencesSettings) -> tuple[Sentences, int]:
    """The sentences of each language, and how many were left out for their length.

    Number n of all languages mean the same.

    Raises InputError, with file and line, where a file is missing, not UTF-8 or has an empty
    sentence, and where the languages have different numbers of sentences or fewer than two.
    """
    files = sentence_files(settings)
    if "tsv" in files:
        sentences = _read_tsv(settings, files["tsv"])
    else:
        sentences = {lang: _read_lines(path) for lang, path in files.items()}
        counts = {files[lang].name: len(lines) for lang, lines in sentences.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} {n}" for name, n in counts.items())
            folder = next(iter(files.values())).parent
            raise InputError(f"{folder}: the files have different numbers of lines: {found}")
    total = len(next(iter(sentences.values())))
    limit = settings.max_chars
    kept = [
        n
        for n in range(total)
        if limit is None or all(len(lines[n]) <= limit for lines in sentences.values())
    ]
    if len(kept) < MIN_SENTENCES:
        short = "" if limit is None else f" of at most {limit} characters (sentences.max_chars)"
        raise InputError(
            f"{settings.path}: found {len(kept)} sentences{short}, expected at least "
            f"{MIN_SENTENCES}, as the worked example is another sentence"
        )
    chosen = kept[: settings.max_sentences]
    texts = {lang: [lines[n] for n in chosen] for lang, lines in sentences.items()}
    return texts, total - len(kept)


def _lines(path: Path) -> list[str]:
    """Lines without their ends. Only line feeds part lines: a sentence may hold U+2028."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def _read_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in _lines(path)]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InputError(
                f"{path}:{number}: an empty line where a sentence should be; the languages' lines "
                "belong together by number, so put the sentence in or take it out of every file"
            )
    return lines


def _read_tsv(settings: SentencesSettings, path: Path) -> Sentences:
    lines = _lines(path)
    header = lines[0].split("\t")
    columns: dict[str, int] = {}
    for lang in settings.languages:
        name = settings.files.get(lang, lang)
        if name not in header:
            raise InputError(
                f"{path}:1: no column '{name}' for the language '{lang}' among "
                f"{', '.join(header)}; name it in sentences.files, or leave the language out"
            )
        columns[lang] = header.index(name)
    sentences: dict[str, list[str]] = {lang: [] for lang in columns}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise InputError(
                f"{path}:{number}: found {len(cells)} columns, expected {len(header)}, as in line 1"
            )
        for lang, column in columns.items():
            if not cells[column].strip():
                raise InputError(f"{path}:{number}: the sentence of '{lang}' is empty")
            sentences[lang].append(cells[column].strip())
    return sentences
