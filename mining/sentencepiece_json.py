"""A SentencePiece model as a `tokenizers` engine with the same ids.

Holds for models of the `tokenizer` stage: identity normalisation, a word-border mark before the
text, no piece across a word border. Newlines and other characters without a piece are bytes.
"""

from __future__ import annotations

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mining.settings import ModelType

BORDER = "\u2581"
SCORE_UNIT = 2.0**-8
KINDS: dict[int, ModelType] = {1: "unigram", 2: "bpe", 3: "word"}  # TrainerSpec.ModelType


def to_tokenizer_json(model: bytes, kind: ModelType) -> tuple[Tokenizer, dict[str, str]]:
    """Convert a serialised model of this kind; returns the engine and special tokens by role."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    scores = [processor.get_score(i) for i in range(len(processor))]
    byte_fallback = any(processor.is_byte(i) for i in range(len(processor)))
    reserved = {i for i in range(len(processor)) if _reserved(processor, i)}
    # "<s>" or "<0x41>" written out in a text is text: the search must never prefer these pieces.
    never = min(score for i, score in enumerate(scores) if i not in reserved) - 1000.0
    scores = [never if i in reserved else score for i, score in enumerate(scores)]
    unk = pieces[processor.unk_id()]
    if kind == "unigram":
        engine = Tokenizer(
            models.Unigram(
                list(zip(pieces, scores, strict=True)), processor.unk_id(), byte_fallback
            )
        )
    elif kind == "bpe":
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        engine = Tokenizer(
            models.BPE(
                vocabulary,
                _merges([p for i, p in enumerate(pieces) if i not in reserved], vocabulary),
                unk_token=unk,
                fuse_unk=True,
                byte_fallback=byte_fallback,
            )
        )
    else:
        engine = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token=unk))
    # Not Metaspace's own prefix: it leaves out the mark before a text that begins with a space.
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BORDER), normalizers.Replace(" ", BORDER)]
    )
    engine.pre_tokenizer = pre_tokenizers.Metaspace(BORDER, prepend_scheme="never", split=True)
    engine.decoder = decoders.Sequence(
        [
            decoders.Replace(BORDER, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = {"unk_token": unk}
    for role, token in (("bos_token", processor.bos_id()), ("eos_token", processor.eos_id())):
        if token >= 0:
            special[role] = pieces[token]
    engine.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special.values()]
    )
    return engine, special


def read_kind(model: bytes) -> ModelType:
    """The kind of a serialised model of the `tokenizer` stage."""
    return KINDS[_parse(model).trainer_spec.model_type]


def round_scores(model: bytes) -> bytes:
    """A serialised model with its scores rounded to multiples of SCORE_UNIT.

    Sums of such scores are exact in 32 bits up to 65,536, so that every engine finds the same best
    segmentation, also where two are equally good.
    """
    proto = _parse(model)
    for piece in proto.pieces:
        piece.score = round(piece.score / SCORE_UNIT) * SCORE_UNIT
    rounded: bytes = proto.SerializeToString(deterministic=True)
    return rounded


def has_rounded_scores(model: bytes) -> bool:
    """Whether `round_scores` would change nothing."""
    return all((piece.score / SCORE_UNIT).is_integer() for piece in _parse(model).pieces)


def _parse(model: bytes) -> sentencepiece_model_pb2.ModelProto:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def _reserved(processor: sentencepiece.SentencePieceProcessor, token: int) -> bool:
    return bool(
        processor.is_control(token) or processor.is_unknown(token) or processor.is_byte(token)
    )


def _merges(pieces: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE model: all ways to make a piece of two, in its order."""
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        ways = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
        merges.extend(sorted(ways, key=lambda way: (vocabulary[way[0]], vocabulary[way[1]])))
    return merges
