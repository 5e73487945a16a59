"""Next-token loss whose logits exist only piece by piece.

The logits of a batch are its largest tensor by far ([tokens, vocabulary]); plain cross-entropy
holds them, their log-softmax and their gradient at once. Here each piece of rows goes from hidden
states to loss and gradients while it is in the cache, and is then overwritten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Models whose forward is the head applied to the backbone's last hidden state and nothing else (no
# soft cap, no scaling); for others the logits come from the model itself.
PLAIN_HEADS = frozenset(
    {"llama", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3", "gpt_neox", "bloom"}
)
LOGITS_PER_PIECE_CPU = 1 << 20
LOGITS_PER_PIECE_GPU = 1 << 27
MIN_ROWS_PER_PIECE = 256


def rows_per_piece(vocab_size: int, device_type: str) -> int:
    """Rows of logits computed at once: few enough for the cache, enough to keep cores busy."""
    budget = LOGITS_PER_PIECE_CPU if device_type == "cpu" else LOGITS_PER_PIECE_GPU
    return max(MIN_ROWS_PER_PIECE, budget // vocab_size)


class _HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` against `labels`, with both gradients.

    Gives each row's cross-entropy too, through which nothing is differentiated.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        rows: int,
        dtype: torch.dtype,
        needs_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        n = labels.numel()
        head, x = weight.detach().to(dtype), hidden.detach().to(dtype)
        hidden_gradient = torch.empty_like(x) if needs_gradients else None
        # In float32 also where the weight itself is in bf16 (training.distributed.fsdp_plugin): it
        # is a sum over pieces.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_gradients else None
        losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
        for start in range(0, n, rows):
            piece, wanted = x[start : start + rows], labels[start : start + rows, None]
            logits = (piece @ head.t()).float()
            peak = logits.amax(1, keepdim=True)
            right = logits.gather(1, wanted)
            weights = logits.sub_(peak).exp_()
            norm = weights.sum(1, keepdim=True)
            losses[start : start + rows] = (norm.log() + peak - right)[:, 0]
            if hidden_gradient is None or weight_gradient is None:
                continue
            # d loss / d logits = (softmax - one-hot) / n
            delta = weights.div_(norm * n)
            delta.scatter_add_(1, wanted, torch.full_like(norm, -1.0 / n))
            delta = delta.to(dtype)
            torch.mm(delta, head, out=hidden_gradient[start : start + rows])
            if dtype == torch.float32:
                weight_gradient.addmm_(delta.t(), piece)
            else:
                weight_gradient += delta.t() @ piece
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.gradients = hidden_gradient.to(hidden.dtype), weight_gradient.to(weight.dtype)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # In place and given away, as the weight's is as large as the weight: it becomes `grad`.
        (hidden_gradient, weight_gradient), ctx.gradients = ctx.gradients, None
        scale = gradients[0]
        scaled = hidden_gradient.mul_(scale), weight_gradient.mul_(scale)
        return *scaled, None, None, None, None


def head_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats, float32) of a linear head without bias: the mean, and of each row [n].

    `hidden` float [n, d], `weight` float [vocabulary, d], `labels` int64 [n]. The matrix products
    run in `dtype`, softmax and sums in float32. The mean is differentiable in `hidden` and
    `weight`, once; the rows are not.
    """
    if rows is None:
        # Pieces of equal size, so that none is too small to be worth its products.
        largest = rows_per_piece(weight.shape[0], hidden.device.type)
        rows = -(-labels.numel() // -(-labels.numel() // largest))
    with torch.autocast(hidden.device.type, enabled=False):
        found: tuple[Tensor, Tensor] = _HeadLoss.apply(
            hidden, weight, labels, rows, dtype, torch.is_grad_enabled()
        )  # type: ignore[no-untyped-call]
    return found


def sums_by_group(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Sum of `losses` and number of them for each group, float32 [2 * n_groups], sums first.

    `losses` float32 [n], `groups` int64 of as many elements.
    """
    table = losses.new_zeros(2, n_groups)
    table.index_add_(1, groups.flatten(), torch.stack([losses, torch.ones_like(losses)]))
    return table.flatten()


def document_positions(tokens: Tensor, end_of_text: int) -> Tensor:
    """Places of tokens in their documents, int64 [batch, length], for int64 `tokens` of that shape.

    An end-of-text token counts as the first of the document after it (place 0), as it stands before
    a document that stands alone. A row's first token has place 0 whatever it is.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return places - torch.where(tokens == end_of_text, places, 0).cummax(1).values


class NextTokenLoss(nn.Module):
    """A causal language model as a function from sequences to their mean loss.

    With `end_of_text`, the documents of a sequence are kept apart: no attention across the border
    before each end-of-text token, and positions from 0. transformers makes the mask of its models
    from the positions: block-diagonal for sdpa, sequences of varying length for flash attention.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str,
        end_of_text: int | None = None,
        n_groups: int = 0,
    ) -> None:
        """`model` is a transformers causal model; `precision` is "float32" or "bf16"."""
        super().__init__()
        self.model, self.end_of_text, self.n_groups = model, end_of_text, n_groups
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        self.plain_head = config.model_type in PLAIN_HEADS and getattr(head, "bias", None) is None

    def forward(
        self, tokens: Tensor, groups: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mean loss (nats per token, float32 scalar) of int64 `tokens` [batch, length + 1].

        With `groups` int64 [batch, length] also sums_by_group, without gradient.
        """
        inputs, labels = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        positions: dict[str, Tensor] = {}
        if self.end_of_text is not None:
            positions["position_ids"] = document_positions(inputs, self.end_of_text)
            config: Any = self.model.config
            if config._attn_implementation.startswith("flash"):
                # Its kernel for varying lengths takes a single row; places of 0 cut that.
                inputs = inputs.reshape(1, -1)
                positions["position_ids"] = positions["position_ids"].reshape(1, -1)
        mixed = self.dtype != torch.float32
        device = tokens.device.type
        # No cache: every weight is cast once, and the copies would outlive what is computed again.
        with torch.autocast(device, torch.bfloat16, enabled=mixed, cache_enabled=False):
            if self.plain_head:
                model: Any = self.model
                states = model.base_model(
                    input_ids=inputs, use_cache=False, **positions
                ).last_hidden_state
                weight = model.get_output_embeddings().weight
                loss, losses = head_loss(states.flatten(0, 1), weight, labels, self.dtype)
                return self._with_groups(loss, losses, groups)
            logits = self.model(input_ids=inputs, use_cache=False, **positions).logits
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="none")
        return self._with_groups(losses.mean(), losses.detach(), groups)

    def _with_groups(
        self, loss: Tensor, losses: Tensor, groups: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if groups is None:
            return loss
        return loss, sums_by_group(losses, groups, self.n_groups)
