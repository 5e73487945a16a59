"""Settings of the evaluation stages: one frozen dataclass a stage, checked when it is made."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from mining.common.errors import check_setting
from mining.common.stage import path_setting

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Form = Literal["source", "target"]
Rule = Literal["winner", "any"]


def _check_shared(settings: EvaluateSettings | TraceSettings) -> None:
    s = settings
    check_setting(s, "examples", s.examples >= 0, "at least 0")
    check_setting(s, "max_items", s.max_items is None or s.max_items >= 1, "at least 1, or null")
    check_setting(
        s, "min_doc_freq", s.min_doc_freq is None or s.min_doc_freq >= 1, "at least 1, or null"
    )
    check_setting(s, "batch_tokens", s.batch_tokens is None or s.batch_tokens >= 1, "at least 1")
    check_setting(
        s,
        "device",
        s.device in ("auto", "cpu", "cuda", "mps") or s.device.startswith("cuda:"),
        "auto, cpu, mps, cuda or cuda:N",
    )
    _check_intervals(s)


def _check_intervals(
    settings: EvaluateSettings | CompareSettings | TraceSettings | AttributeSettings,
) -> None:
    s = settings
    check_setting(s, "bootstrap_samples", s.bootstrap_samples >= 1, "at least 1")
    check_setting(s, "confidence", 0 < s.confidence < 1, "between 0 and 1")


@dataclass(frozen=True)
class EvaluateSettings:
    """Scores a model on the word-translation task (METHOD section 1).

    Attributes:
        draws: draws of worked examples for each item.
        shared_draws: draw the worked examples once for a direction, not for each item (the paper's
            way): several times faster, but the items' scores share the luck of the draw. A concept
            that stands among the examples gets its own.
        examples: worked examples in a prompt.
        max_items: items per direction, at most, chosen by a hash of the concept (the same concepts
            in every direction, for every model and seed); null takes all.
        min_doc_freq: only concepts whose words stand in at least this many documents in both
            languages (needs the words stage); null takes all.
        frequency_bands: lower edges of document frequency, such as [1, 10, 100], by which items are
            told apart (needs the words stage); empty leaves frequencies out.
        forms: source (the paper's score: wrong source words for the right answer), and target too
            (wrong answers for the right source word).
        share_prefixes: compute what prompts have in common once: auto does if a probe shows that
            this model gives the same numbers that way, on and off force it.
        cache: folder that keeps every likelihood for later runs, whatever their task's version or
            intervals, and for other processes; null keeps them until the stage is finished.
        revision: revision of a hub model; null takes its default.
        batch_tokens: tokens, padding included, in a batch; null takes an estimate of what fits.
            Halved where memory runs out.
        device: auto, cpu, mps, cuda or cuda:N.
        dtype: of the weights; auto is float32 on a CPU, else bfloat16 where the device has it.
        bootstrap_samples: samples of concepts that the intervals come from.
        confidence: level of the intervals.
    """

    draws: int = 5
    shared_draws: bool = False
    examples: int = 5
    max_items: int | None = None
    min_doc_freq: int | None = None
    frequency_bands: tuple[int, ...] = ()
    forms: tuple[Form, ...] = ("source", "target")
    share_prefixes: Literal["auto", "on", "off"] = "auto"
    cache: str | None = path_setting()
    revision: str | None = None
    batch_tokens: int | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_setting(self, "draws", self.draws >= 1, "at least 1")
        forms_ok = "source" in self.forms and len(set(self.forms)) == len(self.forms)
        check_setting(self, "forms", forms_ok, "source, or source and target")
        bands = (0, *self.frequency_bands)
        rising = all(low < high for low, high in itertools.pairwise(bands))
        check_setting(self, "frequency_bands", rising, "rising numbers from 1")
        _check_shared(self)


@dataclass(frozen=True)
class CompareSettings:
    """Compares the evaluated models, two by two on the same items.

    Attributes:
        baseline: the model that its pairs are measured from, and the only one to be compared with
            where there are more than ten models; the first model where none has this name.
        permutations: sign flips of the permutation test, at most; exact where all are fewer.
        bootstrap_samples: samples of concepts that the intervals come from.
        confidence: level of the intervals.
    """

    baseline: str = "random"
    permutations: int = 10_000
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_setting(self, "permutations", self.permutations >= 100, "at least 100")
        _check_intervals(self)


@dataclass(frozen=True)
class TraceSettings:
    """Follows the answer through the layers with the logit lens (METHOD section 2).

    Attributes:
        examples: worked examples in a prompt; the prompt is the first draw of the evaluation's.
        max_items: items per direction, at most; null takes all. The same items as in evaluate.
        min_doc_freq: only concepts whose words stand in at least this many documents in both
            languages (needs the words stage); null takes all.
        top_k: most likely tokens kept for each layer.
        pivots: pivots of a pair (the strongest of pair_pivots) whose probability is summed.
        rule: which rule the classes follow: winner (METHOD's: the most probable token over all
            layers decides) or any (a token of neither word reaches the threshold in some layer).
            Both are in the table of items.
        threshold: the probability for the rule any.
        thresholds: probabilities for the table that shows how the classes depend on them.
        embeddings: also show the embeddings as layer 0; they never vote.
        heatmaps: items of each class that are read at every position too, for a heatmap.
        heatmap_positions: positions of such an item, the last ones of the prompt.
        tuned_text: a text (UTF-8) on which translators for the tuned lens are trained before the
            trace reads the layers through them; null reads them with the plain logit lens.
        tuned_lens: translators that another trace of the same model trained (tuned_lens.safetensors
            in its folder), in place of tuned_text.
        tuned_steps: steps of that training.
        final_norm: path of the model's final normalisation module; null finds it.
        blocks: path of the model's list of blocks; null finds it.
        unembedding: path of the module that makes logits; null takes the model's output embeddings.
        revision: revision of a hub model; null takes its default.
        batch_tokens: tokens, padding included, in a batch.
        device: auto, cpu, mps, cuda or cuda:N.
        dtype: of the weights; auto is float32 on a CPU, else bfloat16 where the device has it.
        bootstrap_samples: samples of concepts that the intervals come from.
        confidence: level of the intervals.
    """

    examples: int = 5
    max_items: int | None = None
    min_doc_freq: int | None = None
    top_k: int = 10
    pivots: int = 50
    rule: Rule = "winner"
    threshold: float = 0.1
    thresholds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    embeddings: bool = False
    heatmaps: int = 1
    heatmap_positions: int = 12
    tuned_text: str | None = path_setting()
    tuned_lens: str | None = path_setting()
    tuned_steps: int = 250
    final_norm: str | None = None
    blocks: str | None = None
    unembedding: str | None = None
    revision: str | None = None
    batch_tokens: int = 16384
    device: str = "auto"
    dtype: Dtype = "auto"
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_setting(self, "top_k", 1 <= self.top_k <= 1000, "between 1 and 1000")
        check_setting(self, "pivots", self.pivots >= 1, "at least 1")
        check_setting(self, "threshold", 0 < self.threshold <= 1, "above 0, at most 1")
        rising = all(a < b for a, b in itertools.pairwise((0.0, *self.thresholds, 1.0 + 1e-9)))
        check_setting(self, "thresholds", rising, "rising numbers above 0, at most 1")
        check_setting(self, "heatmaps", self.heatmaps >= 0, "at least 0")
        check_setting(self, "heatmap_positions", self.heatmap_positions >= 1, "at least 1")
        check_setting(self, "tuned_steps", self.tuned_steps >= 1, "at least 1")
        one = self.tuned_text is None or self.tuned_lens is None
        check_setting(self, "tuned_lens", one, "null where tuned_text is given")
        _check_shared(self)


@dataclass(frozen=True)
class AttributeSettings:
    """Ties behaviours and scores to the corpus counts (METHOD section 2, Attribution).

    Attributes:
        rule: the classification used: winner, any (see trace.rule), or trace, the trace's own.
        pivots: pivots of a pair that its pivot contribution sums over, the strongest; null for all.
        bands: lower edges of the bands of joint document frequency, beside 0, for the calibration.
        bootstrap_samples: samples of concepts that the intervals come from.
        confidence: level of the intervals.
    """

    rule: Literal["trace", "winner", "any"] = "trace"
    pivots: int | None = None
    bands: tuple[int, ...] = (1, 3, 10, 30, 100)
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_setting(
            self, "pivots", self.pivots is None or self.pivots >= 1, "at least 1, or null"
        )
        rising = all(low < high for low, high in itertools.pairwise((0, *self.bands)))
        check_setting(self, "bands", rising, "rising numbers from 1")
        _check_intervals(self)
