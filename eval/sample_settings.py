"""Settings of the sample command."""

from __future__ import annotations

from dataclasses import dataclass

from eval.settings import Dtype
from mining.common.errors import check_setting


@dataclass(frozen=True)
class SampleSettings:
    """Lets models write on, to be read: after prompts of one's own, or of validation documents.

    Attributes:
        prompts: texts to write on from; empty takes the beginnings of validation documents.
        languages: languages of those documents; empty takes all that the mix has.
        per_language: documents of each language, drawn by the run's seed.
        prompt_tokens: tokens of a document that the model is given.
        new_tokens: tokens that it writes, at most.
        temperature: of the draw of each token; 0 takes the likeliest.
        top_p: a token is drawn among the likeliest ones that hold this share of the probability.
        device: auto, cpu, mps, cuda or cuda:N.
        dtype: of the weights; auto is float32 on a CPU, else bfloat16 where the device has it.
    """

    prompts: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    per_language: int = 3
    prompt_tokens: int = 32
    new_tokens: int = 96
    temperature: float = 0.7
    top_p: float = 0.95
    device: str = "auto"
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        for key in ("per_language", "prompt_tokens", "new_tokens"):
            check_setting(self, key, getattr(self, key) >= 1, "at least 1")
        check_setting(self, "prompts", all(self.prompts), "no empty text")
        check_setting(self, "temperature", 0 <= self.temperature <= 10, "between 0 and 10")
        check_setting(self, "top_p", 0 < self.top_p <= 1, "above 0, at most 1")
