"""Settings of the mining stages: one frozen dataclass a stage, checked when it is made.

Path settings are recorded in manifests by the content they lead to, all others by value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mining.byte_sizes import parse_bytes
from mining.common.errors import check_setting
from mining.common.secret_words import refuse_secret_urls
from mining.common.stage import engine_setting, path_setting
from mining.token_settings import TokenFilesSettings


@dataclass(frozen=True)
class CorpusSettings:
    """The documents: JSONL (plain, .gz, .zst), Parquet, or Hugging Face datasets.

    Attributes:
        path: folder or file, local or any fsspec URL (s3://, gs://, hf://datasets/NAME ...); null
            means the generated world. Links are followed, each folder once. No password or
            signature stands in it, as settings are written down: keys come from where the file
            system looks for them, or from fsspec's own configuration.
        glob: pattern of the files in the folder; null takes every *.jsonl, *.jsonl.gz, *.jsonl.zst,
            *.json.gz, *.json.zst, *.ndjson, *.parquet and *.arrow (datasets' save_to_disk), and
            warns of others that look like data.
        languages: the languages to keep, by code; documents in others are dropped (and counted).
            Empty keeps all.
        text_field: field of the document's text; a dot leads into nested objects.
        id_field: field of the document's id, unique in the corpus; null makes one of file and line.
        lang_field: field of its language, a code of letters, digits, "-" and "_"; null, or a
            document without it, means it is identified.
        source_field: field of its source; a document without it gets the name of its file.
        group_field: field that documents share which must not be split between training and
            validation, such as the versions of one page in several languages; null for none.
        max_record_bytes: longer records are quarantined by their first 64 KiB, length and hash.
        deduplicate: drop documents whose text stood before, letter by letter.
        min_chars: drop documents shorter than this.
        token_files: where the documents are token ids already.
    """

    path: str | None = path_setting()
    glob: str | None = None
    languages: tuple[str, ...] = ()
    text_field: str = "text"
    id_field: str | None = "id"
    lang_field: str | None = "lang"
    source_field: str = "source"
    group_field: str | None = None
    max_record_bytes: int = 64 << 20
    deduplicate: bool = True
    min_chars: int = 1
    token_files: TokenFilesSettings = field(default_factory=TokenFilesSettings)

    def __post_init__(self) -> None:
        refuse_secret_urls(self.path, "path", type(self))
        inside = self.glob is None or (
            self.glob[:1] not in ("", "/") and ".." not in self.glob.split("/")
        )
        check_setting(self, "glob", inside, "a pattern of names in the folder of corpus.path")
        check_setting(self, "max_record_bytes", self.max_record_bytes >= 1 << 10, "at least 1024")
        check_setting(self, "min_chars", self.min_chars >= 1, "at least 1")
        for lang in self.languages:
            check_setting(self, "languages", bool(lang), "no empty code")


ModelType = Literal["unigram", "bpe", "word"]


@dataclass(frozen=True)
class TokenizerSettings:
    """Trains a SentencePiece model on a sample of the documents, or takes a given tokenizer.

    Attributes:
        path: folder with a tokenizer.json, or a Hugging Face hub id; null trains one.
        revision: revision of the hub id.
        model_type: unigram, bpe, or word (whole words between spaces, no byte fallback).
        vocab_size: number of pieces.
        character_coverage: share of the sample's characters that get a piece of their own.
        byte_fallback: spell other characters as bytes instead of as unknown.
        sample_chars: characters of the sample, shared evenly between the languages.
        max_line_chars: longer lines of text are cut at this length for training.
    """

    path: str | None = path_setting()
    revision: str | None = None
    model_type: ModelType = "unigram"
    vocab_size: int = 32000
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    sample_chars: int = 20_000_000
    max_line_chars: int = 2000

    def __post_init__(self) -> None:
        check_setting(self, "vocab_size", self.vocab_size >= 8, "at least 8")
        check_setting(
            self, "character_coverage", 0.9 <= self.character_coverage <= 1.0, "between 0.9 and 1"
        )
        check_setting(self, "sample_chars", self.sample_chars >= 1000, "at least 1000")
        check_setting(self, "max_line_chars", self.max_line_chars >= 16, "at least 16")


@dataclass(frozen=True)
class TokenizeSettings:
    """Turns documents into token shards.

    Attributes:
        words: also segment the text into words (ICU) and write word-id shards.
        max_words: size of the word vocabulary, by document frequency; rarer words get the id 0.
        word_min_doc_freq: words in fewer documents get the id 0.
        near_duplicates: also drop documents of nearly the same words as an earlier one, by MinHash:
            about 80% common runs of five words. Reads and segments the text once more.
    """

    words: bool = False
    max_words: int = 1_000_000
    word_min_doc_freq: int = 2
    near_duplicates: bool = False

    def __post_init__(self) -> None:
        check_setting(self, "max_words", self.max_words >= 1, "at least 1")
        check_setting(self, "word_min_doc_freq", self.word_min_doc_freq >= 1, "at least 1")


MAX_ITEMS = 1 << 17


@dataclass(frozen=True)
class CountSettings:
    """Counts in how many documents, or how often in windows, two items stand together, exactly.

    Attributes:
        unit: items are token ids, or word ids (needs tokenize.words).
        vocabulary: file that names the items, one a line: words, or token ids; null takes the
            top_items.
        top_items: number of items: the ones in the most documents, ties by id.
        context: where two items stand together: in one document, in one sequence (a document's
            consecutive pieces of at most sequence_length tokens, each counted like a document), or
            within a window of tokens (pivots need one of the others).
        sequence_length: most tokens of a sequence.
        window: most tokens from one item to the other, where context is window.
        directed: count the pair (i, j) only where i stands first; else (i, j) with i <= j.
        weights: of distances in a window: flat, or harmonic (1 / distance; the sums are whole
            numbers, to be divided by the `divisor` in the manifest).
        sources: count only documents of these sources; empty takes all.
        map_tasks: pieces the shards are divided into; null means one a worker.
        memory_limit: memory of one task, in bytes or as in 8GB, 500MiB (there are engine.workers at
            a time); null means as much as is quick.
    """

    unit: Literal["token", "word"] = "token"
    vocabulary: str | None = path_setting()
    top_items: int = 8192
    context: Literal["document", "sequence", "window"] = "document"
    sequence_length: int = 2048
    window: int = 10
    directed: bool = False
    weights: Literal["flat", "harmonic"] = "flat"
    sources: tuple[str, ...] = ()
    map_tasks: int | None = engine_setting()
    memory_limit: int | str | None = engine_setting()

    def __post_init__(self) -> None:
        check_setting(self, "top_items", 2 <= self.top_items <= MAX_ITEMS, "between 2 and 131072")
        check_setting(self, "sequence_length", self.sequence_length >= 2, "at least 2")
        # More harmonic weights, as whole numbers, would soon overflow 64 bits.
        most = 40 if self.weights == "harmonic" else 1 << 15
        check_setting(self, "window", 1 <= self.window <= most, f"between 1 and {most}")
        check_setting(
            self, "map_tasks", self.map_tasks is None or self.map_tasks >= 1, "at least 1, or null"
        )
        limit = None if self.memory_limit is None else parse_bytes(self.memory_limit)
        readable = limit is not None or self.memory_limit is None
        check_setting(self, "memory_limit", readable, "bytes, or a size such as 8GB or 500MiB")


@dataclass(frozen=True)
class WordsSettings:
    """Finds words and pairs of words in the documents (METHOD sections 2 and 3).

    Attributes:
        word_list: file of further words to count: language, tab, word, one a line.
        pair_list: file of further pairs to count: language, word, language, word, with tabs.
        matching: look for words in the text, or for their token sequences among the tokens (the
            reference's way: it misses words that share a token with their neighbours), or both,
            to compare; then all but the columns *_tokens comes from the text.
        case_sensitive: tell upper from lower case when words are looked for in the text.
        normalize: Unicode form of words and text; NFKC makes full-width letters plain ones.
        sample_documents: documents a word's token shares are taken from, at most; also the number
            of background documents.
        pivots_per_pair: tokens kept for each pair of words.
        min_npmi: a pair's pivots have at least this normalised PMI with both words.
        max_doc_share: tokens in more than this share of all documents are stop-words, never pivots.
        keep_punctuation: let tokens without any letter be pivots.
    """

    word_list: str | None = path_setting()
    pair_list: str | None = path_setting()
    matching: Literal["text", "tokens", "both"] = "text"
    case_sensitive: bool = False
    normalize: Literal["NFC", "NFKC"] = "NFC"
    sample_documents: int = 2000
    pivots_per_pair: int = 100
    min_npmi: float = 0.0
    max_doc_share: float = 0.2
    keep_punctuation: bool = False

    def __post_init__(self) -> None:
        check_setting(self, "sample_documents", self.sample_documents >= 1, "at least 1")
        check_setting(self, "pivots_per_pair", self.pivots_per_pair >= 1, "at least 1")
        check_setting(self, "min_npmi", -1 <= self.min_npmi <= 1, "between -1 and 1")
        check_setting(self, "max_doc_share", 0 < self.max_doc_share <= 1, "above 0, at most 1")


Definition = Literal["degree", "breadth", "specificity"]


@dataclass(frozen=True)
class PivotsSettings:
    """Chooses the pivot set from the counts (METHOD section 4).

    Attributes:
        definition: degree (many strong edges, any language), breadth (strong edges to at least two
            languages) or specificity (one link that stands out, in at least two languages).
        statistic: how strong a link is: npmi, or count (documents with both items).
        language_share: an item belongs to the language that holds this share of its documents.
        min_doc_freq: items in fewer documents are never pivots.
        edge_npmi: an edge is a pair with at least this NPMI (degree, breadth, the reach columns).
        edge_count: the same in documents, where the statistic is count.
        edge_quantile: edges are the pairs above this quantile of all pairs that meet, in place of
            edge_npmi and edge_count; costs a second pass over the pairs.
        min_degree: degree: a pivot has more edges than this.
        min_reach: breadth: a pivot has at least this many edges to each of two languages.
        rank: specificity: the gap is between the strongest and the (rank + 1)-th strongest link.
        min_gap: specificity: the second-largest gap over the languages is at least this, in NPMI
            or documents.
        top_share: pivots are this share of the items that may be pivots, those with the largest
            values, in place of min_degree, min_reach and min_gap.
        exclude: file of items that are never pivots, one a line, as the table writes them; spaces
            around an item do not matter.
        neighbours: strongest neighbours per language that the table names for each item.
        require_letters: items without any letter are never pivots.
        stability: also choose pivots in each half of the documents, and say how well they agree;
            costs another pass over the token shards, in two processes.
    """

    definition: Definition = "specificity"
    statistic: Literal["npmi", "count"] = "npmi"
    language_share: float = 0.9
    min_doc_freq: int = 20
    edge_npmi: float = 0.2
    edge_count: int = 20
    edge_quantile: float | None = None
    min_degree: int = 50
    min_reach: int = 3
    rank: int = 5
    min_gap: float = 0.06
    top_share: float | None = None
    exclude: str | None = path_setting()
    neighbours: int = 5
    require_letters: bool = True
    stability: bool = False

    def __post_init__(self) -> None:
        def check(key: str, ok: bool, expected: str) -> None:
            check_setting(self, key, ok, expected)

        check("language_share", 0.5 < self.language_share <= 1, "above 0.5, at most 1")
        check("min_doc_freq", self.min_doc_freq >= 1, "at least 1")
        check("edge_npmi", -1 <= self.edge_npmi <= 1, "between -1 and 1")
        check("edge_count", self.edge_count >= 1, "at least 1")
        quantile_ok = self.edge_quantile is None or 0 <= self.edge_quantile < 1
        check("edge_quantile", quantile_ok, "at least 0, below 1, or null")
        check("min_degree", self.min_degree >= 0, "at least 0")
        check("min_reach", self.min_reach >= 1, "at least 1")
        check("rank", 1 <= self.rank <= 100, "between 1 and 100")
        gap_ok = self.min_gap >= 0 and (self.min_gap <= 2 or self.statistic == "count")
        check("min_gap", gap_ok, "between 0 and 2, or a number of documents with statistic count")
        share_ok = self.top_share is None or 0 < self.top_share <= 1
        check("top_share", share_ok, "above 0, at most 1, or null")
        check("neighbours", 1 <= self.neighbours <= 50, "between 1 and 50")


@dataclass(frozen=True)
class ScoreSettings:
    """Scores each document by its share of pivots.

    Attributes:
        attribute: name of the score in the Dolma-style attribute files.
    """

    attribute: str = "pivot_proportion"

    def __post_init__(self) -> None:
        check_setting(self, "attribute", bool(self.attribute), "a name")


@dataclass(frozen=True)
class WorldSettings:
    """Generates a small multilingual corpus with planted pivots, and the task that goes with it.

    Shares and rates are per unit of text: a unit is a function word, a neutral token, a hub, or a
    concept's word with the pivot or name that may stand beside it.

    Attributes:
        languages: number of languages; their codes are la, lb, lc, ...
        topics: number of topics; a document of the pool is about one.
        concepts_per_topic: concepts of a topic; each has one word per language.
        training_per_topic: concepts of a topic that format documents may translate; the others are
            held out.
        zipf: exponent of the words' frequencies within a topic.
        shared_frequency: a concept's words are equally frequent in all languages; otherwise ranks
            are independent between languages, so that frequency tells nothing about translation.
        two_token_share: share of the words that consist of two white-space tokens.
        function_words: function words of a language.
        function_share: share of the units that are function words.
        neutral_words: tokens without language or topic, shared by all languages.
        neutral_share: share of the units that are neutral tokens.
        hubs_per_topic: tokens without language that are frequent in one topic (harder to mine).
        hub_share: share of the units that are hubs, where there are any.
        pivots: concepts that have a pivot: a token without language that is tied to it in all
            languages. One each, unless the next two say otherwise.
        pivots_per_concept: pivots of such a concept; a word takes one of them at a time.
        concepts_per_pivot: concepts of one topic that share a pivot.
        pivot_alpha: first parameter of the Beta distribution of a document's pivot rate.
        pivot_beta: second parameter; a word that has a pivot brings it at the document's rate.
        pivot_noise: share of the pivots that are another, random one.
        broken_pivots: permute the pivots within each topic, separately per language, so that they
            tie nothing together (a world in which there is no effect to be found).
        names_per_language: tokens tied to one concept in one language only (decoys).
        name_rate: rate at which a word that has a name brings it.
        min_pair_count: fewest code-switched documents that join a pair of held-out words (c1).
        max_pair_count: most of them; each pair's number is drawn log-uniformly between the two.
        gloss_share: share of the joined pairs whose words stand side by side, one explaining the
            other; those of the rest stand anywhere in the document.
        pairs_per_document: held-out pairs that a code-switched document joins, if there are enough.
        format_passes: times each training concept is translated in each direction.
        identity_passes: times each word is repeated after itself.
        pool_documents: documents of the pool, as even over the languages as can be.
        document_tokens: white-space tokens of a document.
    """

    languages: int = 3
    topics: int = 8
    concepts_per_topic: int = 40
    training_per_topic: int = 30
    zipf: float = 0.8
    shared_frequency: bool = False
    two_token_share: float = 0.0
    function_words: int = 20
    function_share: float = 0.3
    neutral_words: int = 40
    neutral_share: float = 0.05
    hubs_per_topic: int = 0
    hub_share: float = 0.08
    pivots: int = 192
    pivots_per_concept: int = 1
    concepts_per_pivot: int = 1
    pivot_alpha: float = 0.3
    pivot_beta: float = 2.5
    pivot_noise: float = 0.03
    broken_pivots: bool = False
    names_per_language: int = 32
    name_rate: float = 0.1
    min_pair_count: int = 1
    max_pair_count: int = 200
    gloss_share: float = 1.0
    pairs_per_document: int = 4
    format_passes: int = 30
    identity_passes: int = 5
    pool_documents: int = 60_000
    document_tokens: int = 64

    def __post_init__(self) -> None:
        def check(key: str, ok: bool, expected: str) -> None:
            check_setting(self, key, ok, expected)

        check("languages", 2 <= self.languages <= 6, "between 2 and 6")
        check("topics", 1 <= self.topics <= 100, "between 1 and 100")
        check("concepts_per_topic", 2 <= self.concepts_per_topic <= 200, "between 2 and 200")
        fewer = f"at least 1, below concepts_per_topic ({self.concepts_per_topic})"
        check("training_per_topic", 1 <= self.training_per_topic < self.concepts_per_topic, fewer)
        check("zipf", 0 <= self.zipf <= 3, "between 0 and 3")
        for key in ("two_token_share", "pivot_noise", "name_rate", "gloss_share"):
            check(key, 0 <= getattr(self, key) <= 1, "between 0 and 1")
        check("function_words", 1 <= self.function_words <= 200, "between 1 and 200")
        check("neutral_words", 1 <= self.neutral_words <= 1000, "between 1 and 1000")
        check("hubs_per_topic", 0 <= self.hubs_per_topic <= 50, "between 0 and 50")
        for key in ("function_share", "neutral_share", "hub_share"):
            check(key, 0 <= getattr(self, key) < 1, "at least 0, below 1")
        shares = self.function_share + self.neutral_share + self.used_hub_share()
        room = f"with neutral_share and hub_share at most 0.95 (found {shares:g})"
        check("function_share", shares <= 0.95, room)
        least, most = self.held_out_pivots(), self.held_out_pivots() + self.training_concepts()
        span = f"between {least} (held-out concepts with one) and {most} (and all training ones)"
        check("pivots", least <= self.pivots <= most, span)
        for key in ("pivots_per_concept", "concepts_per_pivot"):
            check(key, 1 <= getattr(self, key) <= 8, "between 1 and 8")
        check("pivot_alpha", self.pivot_alpha > 0, "above 0")
        check("pivot_beta", self.pivot_beta > 0, "above 0")
        free = self.topics * self.concepts_per_topic - self.pivots
        names = f"between 0 and {free} (concepts without a pivot)"
        check("names_per_language", 0 <= self.names_per_language <= free, names)
        check("min_pair_count", self.min_pair_count >= 1, "at least 1")
        upper = f"at least min_pair_count ({self.min_pair_count})"
        check("max_pair_count", self.max_pair_count >= self.min_pair_count, upper)
        check("document_tokens", 16 <= self.document_tokens <= 1 << 16, "between 16 and 65536")
        most = self.document_tokens // 4
        check("pairs_per_document", 1 <= self.pairs_per_document <= most, f"between 1 and {most}")
        check("format_passes", self.format_passes >= 1, "at least 1")
        check("identity_passes", self.identity_passes >= 1, "at least 1")
        check("pool_documents", self.pool_documents >= self.languages, "one a language at least")

    def used_hub_share(self) -> float:
        """Share of the units that are hubs: 0 where there are none."""
        return self.hub_share if self.hubs_per_topic else 0.0

    def training_concepts(self) -> int:
        """Number of training concepts in all topics."""
        return self.topics * self.training_per_topic

    def held_out_pivots(self) -> int:
        """Number of held-out concepts that have a pivot: every other one, see mining.world_plan."""
        held = self.concepts_per_topic - self.training_per_topic
        return sum(
            (block + topic) % 2 == 0 for topic in range(self.topics) for block in range(held)
        )
