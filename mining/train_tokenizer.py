"""The `tokenizer` stage: trains SentencePiece on a sample of the documents, or takes a tokenizer.

Either way the stage's folder is a Hugging Face tokenizer (`tokenizer.json` and its side files).
"""

from __future__ import annotations

import heapq
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from mining.common.errors import InputError, SettingsError
from mining.common.files import atomic_path, write_bytes, write_json
from mining.common.logs import log, progress
from mining.common.seeds import hash64
from mining.common.stage import FilesInput, Input, NamedInput, begin, settings_dict
from mining.common.tokenizer import hub_file, load_tokenizer
from mining.documents import FileReader, Record, list_documents
from mining.inputs import CorpusInput
from mining.langid import check_languages, identify
from mining.sentencepiece_json import round_scores, to_tokenizer_json
from mining.settings import CorpusSettings, ModelType, TokenizerSettings

SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# A fixed number: the sums of the unigram trainer depend on how the sentences are divided.
TRAINER_THREADS = 4
# Of <s>, </s>, <unk> and the byte pieces <0x00> to <0xFF>.
RESERVED_NAME_CHARS = "</>sunkx0123456789ABCDEF"


def run_tokenizer(
    settings: TokenizerSettings, corpus: CorpusSettings, out: Path, seed: int
) -> None:
    """Write a tokenizer folder to `out` (see the module's text)."""
    recorded = {**settings_dict(settings), "corpus": settings_dict(corpus), "seed": seed}
    if settings.path is not None:
        given: Input = NamedInput(f"{settings.path}@{settings.revision or 'main'}")
        if Path(settings.path).exists():
            # Not the whole folder: a model's weights may lie beside its tokenizer.
            found = {name: Path(settings.path) / name for name in ("tokenizer.json", *SIDE_FILES)}
            given = FilesInput({name: path for name, path in found.items() if path.is_file()})
            if "tokenizer.json" not in given.files:
                raise InputError(f"{settings.path}: holds no tokenizer.json (tokenizer.path)")
        run = begin("tokenizer", out, {"revision": settings.revision}, {"tokenizer": given})
        if run is not None:
            _copy_tokenizer(settings.path, settings.revision, out)
            run.finish(_describe(out))
        return
    if corpus.token_files.layout is not None:
        raise SettingsError(
            "tokenizer.path: not set, but the documents are token ids already "
            "(corpus.token_files.layout); name the tokenizer that they were made with"
        )
    run = begin("tokenizer", out, recorded, {"documents": CorpusInput(corpus)})
    if run is None:
        return
    sample, hashes = _sample(settings, corpus, seed)
    model = _train(settings, sample)
    write_bytes(out / "spm.model", model)
    _write_tokenizer(out, model, settings.model_type)
    run.record_hashes("documents", hashes)
    counts = _describe(out)
    tokenizer = load_tokenizer(out)
    counts["sample"] = {
        lang: {
            "documents": len(texts),
            "chars": sum(map(len, texts)),
            "tokens": sum(map(len, tokenizer.encode_batch(texts))),
        }
        for lang, texts in sample.items()
    }
    run.finish(counts)


def _describe(folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(folder)
    return {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}


def _copy_tokenizer(source: str, revision: str | None, out: Path) -> None:
    folder = Path(source)
    for name in ("tokenizer.json", *SIDE_FILES):
        if folder.is_dir():
            path = folder / name
        else:
            try:
                path = hub_file(source, name, revision)
            except InputError:
                if name == "tokenizer.json":
                    raise
                continue
        if path.is_file():
            with atomic_path(out / name) as temporary:
                shutil.copyfile(path, temporary)


def _sample(
    settings: TokenizerSettings, corpus: CorpusSettings, seed: int
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Per language the texts with the smallest hashes, to an even share of `sample_chars`.

    What a small language leaves over goes to the others. Also returns the files' hashes.
    """
    # Heaps of (-hash, id, text): the largest hash is thrown out first.
    heaps: dict[str, list[tuple[int, str, str]]] = {}
    held: dict[str, int] = {}
    hashes: dict[str, str] = {}
    files = list_documents(corpus)
    with progress("tokenizer: sampling", len(files), "files") as ticker:
        for name, path in files.items():
            reader = FileReader(path, name, corpus)
            for record in reader:
                if not isinstance(record, Record):
                    continue
                lang = record.lang or identify(record.text)[0]
                if corpus.languages and lang not in corpus.languages:
                    continue
                if lang not in heaps:
                    where = f"the documents up to {name}:{record.line}"
                    check_languages([*heaps, lang], where)
                heap = heaps.setdefault(lang, [])
                text = record.text[: settings.sample_chars]
                heapq.heappush(heap, (-hash64(seed, "tokenizer", record.id), record.id, text))
                held[lang] = held.get(lang, 0) + len(text)
                while held[lang] - len(heap[0][2]) >= settings.sample_chars:
                    held[lang] -= len(heapq.heappop(heap)[2])
            hashes[name] = reader.sha256
            ticker.advance()
    if not heaps:
        raise InputError(f"{corpus.path}: no document of the wanted languages to train on")
    return _water_fill(heaps, settings.sample_chars), hashes


def _water_fill(
    heaps: dict[str, list[tuple[int, str, str]]], total_chars: int
) -> dict[str, list[str]]:
    sizes = {lang: sum(len(text) for _, _, text in heap) for lang, heap in heaps.items()}
    left = total_chars
    sample: dict[str, list[str]] = {}
    order = sorted(heaps, key=lambda lang: (sizes[lang], lang))
    for done, lang in enumerate(order):
        budget = left // (len(order) - done)
        texts: list[str] = []
        for _, _, text in sorted(heaps[lang], reverse=True):
            if budget <= 0:
                break
            texts.append(text[:budget])
            budget -= len(texts[-1])
            left -= len(texts[-1])
        sample[lang] = texts
    return dict(sorted(sample.items()))


def _sentences(sample: dict[str, list[str]], max_chars: int) -> Iterator[str]:
    for texts in sample.values():
        for text in texts:
            for line in text.split("\n"):
                for start in range(0, len(line), max_chars):
                    yield line[start : start + max_chars]


def _train(settings: TokenizerSettings, sample: dict[str, list[str]]) -> bytes:
    model = io.BytesIO()
    chars = sum(len(text) for texts in sample.values() for text in texts)
    log.info(
        "tokenizer: training a %s model of %d pieces on %.1f M characters in %s",
        settings.model_type, settings.vocab_size, chars / 1e6, ", ".join(sample),
    )  # fmt: skip
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(sample, settings.max_line_chars),
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback and settings.model_type != "word",
            # Lossless: decoding gives the text back, and words are found again in the tokens.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            # With these as pieces, the reserved names below can be spelled out as text.
            required_chars="" if settings.model_type == "word" else RESERVED_NAME_CHARS,
            max_sentence_length=4 * settings.max_line_chars,
            shuffle_input_sentence=False,
            hard_vocab_limit=False,
            num_threads=TRAINER_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"SentencePiece could not train on the sample: {message} (see tokenizer.vocab_size)"
        ) from None
    trained = model.getvalue()
    return round_scores(trained) if settings.model_type == "unigram" else trained


def _write_tokenizer(out: Path, model: bytes, kind: ModelType) -> None:
    engine, special = to_tokenizer_json(model, kind)
    with atomic_path(out / "tokenizer.json") as temporary:
        engine.save(str(temporary))
    write_json(out / "special_tokens_map.json", special)
    write_json(
        out / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1 << 30,
        },
    )
