"""One model for all recipes: what stands at a place goes into the trunk, what comes out is held to its objectives.

Legend: T places, S of them of scales, P of latents, Q of features, D width, C numbers of a latent, K codes, V
vocabulary. Which place is what comes with the batch (models/places.py); which parts there are, with the settings
(models/recipe.py) and the format of the data (models/layout.py). No recipe is known by name.

    loss = sum_n weight_n (nll_n + z * lse_n^2) / divisor[0] + lambda * sum over pictures of MSE(noise) / divisor[1]

Divisors are the caller's: the weight of all tokens, and the number of pictures, of the whole global batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from models.around import NEIGHBOURS
from models.attention import Attend, DocumentAttention
from models.batch import Batch
from models.diffusion import PATCH, LinearPatches, TimeEmbedding, UnetPatches, kept_share, noised, sinusoids
from models.embed_around import EmbedAround
from models.layout import Format
from models.objectives import Head, Wanted
from models.recipe import Parts
from models.trunk import CONFIG_FILE, WEIGHTS_FILE, Trunk, TrunkConfig
from models.ulysses import ALONE, SequenceRanks, Share

_CODE_STD = 0.02


@dataclass(frozen=True)
class Losses:
    """What one pass gives. Where S ranks share a batch (models/ulysses.py) each gives its own share, of the same
    shapes: added up over the S ranks they are those of one rank by itself."""

    total: Tensor
    """Scalar, over the divisors."""
    nll_T: Tensor  # noqa: N815
    """(T) nats of each target, 0 where nothing is predicted, and in other ranks' places; no gradient."""
    squared_N: Tensor  # noqa: N815
    """(N) mean squared error of the noise of each picture of latents, 0 of those that begin in other ranks' places; no
    gradient."""


class AnyToAny(nn.Module):
    """Trunk, embedders, heads and objectives in one forward call, so that every parameter is used on every rank."""

    code_vectors: Tensor
    """(K, size) the tokenizer's codebook, of a model with a head of its own for codes."""
    patches: LinearPatches | UnetPatches
    time: TimeEmbedding

    def __init__(self, trunk: TrunkConfig, parts: Parts, form: Format, code_size: int = 0) -> None:
        super().__init__()
        self.parts, self.form, self.code_size = parts, form, code_size
        width = trunk.shape.width
        self.trunk = Trunk(trunk)
        if parts.scale_embeddings:
            self.scale_embedding = nn.Embedding(parts.max_scales, width)
            self.count = nn.Linear(width, width, bias=False)
        if form.layout.interleave > 1:
            self.around = EmbedAround(width)
        if form.latent_size:
            self.time = TimeEmbedding(width)
            self.patches = (UnetPatches if parts.patches == "unet" else LinearPatches)(form.latent_size, width)
            self.kept = kept_share(parts.noise_steps)  # (steps) no buffer: a model in bfloat16 would round it
        if form.feature_size:
            self.feature_in = _mlp(form.feature_size, width, width)
        if self.own_codes:
            self.code_in = _mlp(code_size, width, width)
            self.code_head = nn.Sequential(nn.Linear(width, width), nn.GELU())
            self.code_out = Head(width, form.vocabulary.codebook_size)
            self.register_buffer("code_vectors", torch.zeros(form.vocabulary.codebook_size, code_size))

    @property
    def own_codes(self) -> bool:
        """Whether codes have an embedder and a head of their own."""
        return self.parts.code_head == "own" and self.form.vocabulary.codebook_size > 0

    def initialise(self, seed: int, code_vectors_KC: Tensor | None = None) -> AnyToAny:
        """First weights from the seed, and from the tokenizer's codebook where the settings say so."""
        self.trunk.initialise(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for name, parameter in self.named_parameters():
            if name.startswith("trunk."):
                continue
            if parameter.ndim < 2:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                std = parameter[0].numel() ** -0.5 if "embedding" not in name else _CODE_STD
                nn.init.normal_(parameter, 0.0, std, generator=generator)
        if code_vectors_KC is not None:
            self._from_codebook(code_vectors_KC.float(), generator)
        return self

    @torch.no_grad()
    def _from_codebook(self, vectors_KC: Tensor, generator: torch.Generator) -> None:
        unit_KC = (vectors_KC - vectors_KC.mean(0)) / vectors_KC.std().clamp(min=1e-6)
        if self.own_codes:
            self.code_vectors.copy_(unit_KC)
        if self.parts.code_vectors == "codebook":
            width = self.trunk.config.shape.width
            turn_CD = torch.randn(unit_KC.shape[1], width, generator=generator) * unit_KC.shape[1] ** -0.5
            first, size = self.form.vocabulary.visual_offset, self.form.vocabulary.codebook_size
            self.trunk.embedding.weight[first : first + size] = _CODE_STD * unit_KC @ turn_CD

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) token ids to (..., D)."""
        x = self.trunk.embedding(tokens)
        if not self.own_codes:
            return x
        vocabulary = self.form.vocabulary
        code = tokens - vocabulary.visual_offset
        drawn = (code >= 0) & (code < vocabulary.codebook_size)
        return torch.where(
            drawn[..., None], self.code_in(self.code_vectors[code.clamp(0, len(self.code_vectors) - 1)].to(x.dtype)), x
        )

    def embed_scales(self, codes_SN: Tensor, roles_SN: Tensor, scales_S2: Tensor) -> Tensor:
        """(..., S, D): codes of the coarser grid, blended, or those around each place, with the scale's vectors."""
        x = self.embed(codes_SN)
        if self.form.layout.interleave > 1:
            x = self.around(x, roles_SN)
        else:
            x = (x * roles_SN[..., None].to(x.dtype)).sum(-2)
        if self.parts.scale_embeddings:
            number = sinusoids(scales_S2[..., 1], x.shape[-1]).to(x.dtype)
            x = x + self.scale_embedding(scales_S2[..., 0]) + self.count(number)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V); of a model with a head of its own for codes those stand in their places."""
        said = self.trunk.head(hidden)
        if self.own_codes:
            first, size = self.form.vocabulary.visual_offset, self.form.vocabulary.codebook_size
            said[..., first : first + size] = self.code_logits(hidden)
        return said

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., K)."""
        if self.own_codes:
            return self.code_out(self.code_head(hidden))
        first, size = self.form.vocabulary.visual_offset, self.form.vocabulary.codebook_size
        return hidden @ self.trunk.head.weight[first : first + size].T

    def shown(self, batch: Batch) -> Tensor:
        """(T, D) of what stands at each place, without a pass through the trunk."""
        x_TD = self._with_features(self._with_scales(self.embed(batch.tokens_T), batch), batch)
        if batch.latent_at_P is None:
            return x_TD
        return x_TD.index_copy(0, batch.latent_at_P, self._enter(batch)[0].to(x_TD.dtype))

    def hidden(
        self, batch: Batch, attend: Attend | None = None, share: Share | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(T, D) after the trunk, and (P, C) the noise it sees in the latents; of a rank's share of the batch, those of
        its places, and of the pictures that begin there.

        A part that has nothing to do here runs all the same, at its place in the order, and adds zeros: ranks whose
        batches differ must make their gradients in one order, since ZeRO adds them up by place (those of different
        parameters would be summed), and shards of weights are gathered by all or by none (DeepSpeed#5008).
        """
        share = share or ALONE.share(batch)
        own = share.batch
        x_TD = self._with_features(self._with_scales(self.embed(own.tokens_T), own), own)
        if not self.form.latent_size:
            return self._through(x_TD, batch, share, attend), None
        entered_PD, time_PD, kept = self._enter(own)
        if share.latent_at_R is None or not own.latent_grids:
            x_TD = x_TD + 0.0 * entered_PD.sum()
        else:
            x_TD = x_TD.index_copy(0, share.latent_at_R, entered_PD[share.inside].to(x_TD.dtype))
        hidden_TD = self._through(x_TD, batch, share, attend)
        left_PD = hidden_TD[:0]
        if share.latent_at_R is not None:
            left_PD = share.whole_pictures(hidden_TD[share.latent_at_R])
        if len(left_PD):
            rows, grids = share.begun_rows, (own.latent_grids or [])[share.begun]
            skips = kept[rows.start * PATCH**2 : rows.stop * PATCH**2]
            return hidden_TD, self.patches.leave(left_PD, time_PD[rows], grids, skips)
        idle_1D = 0.0 * (hidden_TD[:1] + left_PD.sum())  # the exchange of pictures, too, has every rank on its way back
        seen_1C = self.patches.leave(idle_1D, time_PD[:1], [(1, 1, 1)], kept[: PATCH**2])
        return hidden_TD + 0.0 * seen_1C.sum(), None if share.latent_at_R is None else seen_1C[:0]

    def _through(self, x_TD: Tensor, batch: Batch, share: Share, attend: Attend | None) -> Tensor:
        if share.ranks.size > 1 and not x_TD.requires_grad:
            # Nothing that stands here is learnt, but on other ranks it may be: gradients must come and go here too.
            x_TD.requires_grad_()
        attend = share.ranks.attend(attend or attention_of(batch, x_TD), len(batch.tokens_T))
        return self.trunk(x_TD[None], share.batch.positions_TA[None], attend)[0]

    def _with_scales(self, x_TD: Tensor, batch: Batch) -> Tensor:
        if batch.scale_at_S is not None:
            assert batch.codes_SN is not None and batch.roles_SN is not None and batch.scales_S2 is not None
            scales_SD = self.embed_scales(batch.codes_SN, batch.roles_SN, batch.scales_S2)
            return x_TD.index_copy(0, batch.scale_at_S, scales_SD.to(x_TD.dtype))
        interleaved = self.form.layout.interleave > 1
        if not self.parts.scale_embeddings and not interleaved:
            return x_TD
        none_1N = batch.tokens_T.new_zeros(1, NEIGHBOURS if interleaved else 4)
        return x_TD + 0.0 * self.embed_scales(none_1N, none_1N, none_1N[:, :2]).sum()

    def _with_features(self, x_TD: Tensor, batch: Batch) -> Tensor:
        if batch.feature_at_Q is not None:
            assert batch.features_QF is not None
            return x_TD.index_copy(0, batch.feature_at_Q, self.feature_in(batch.features_QF.to(x_TD.dtype)))
        if not self.form.feature_size:
            return x_TD
        return x_TD + 0.0 * self.feature_in(x_TD.new_zeros(1, self.form.feature_size)).sum()

    def _enter(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(P, D) into the trunk, (P, D) of the time, what skips the trunk; without pictures, of one empty latent."""
        if not batch.latent_grids:
            time_1D = self.time(batch.tokens_T.new_zeros(1))
            none_1C = time_1D.new_zeros(1, self.form.latent_size)
            entered_1D, kept = self.patches.enter(none_1C, time_1D, [(1, 1, 1)])
            return entered_1D, time_1D, kept
        assert batch.clean_PC is not None and batch.noise_PC is not None and batch.step_P is not None
        time_PD = self.time(batch.step_P)
        kept_P = self.kept.to(batch.step_P.device)[batch.step_P].to(batch.clean_PC.dtype)
        shown_PC = noised(batch.clean_PC, batch.noise_PC, kept_P).to(time_PD.dtype)
        entered_PD, kept = self.patches.enter(shown_PC, time_PD, batch.latent_grids)
        return entered_PD, time_PD, kept

    def forward(self, batch: Batch, divisors_2: Tensor, ranks: SequenceRanks = ALONE) -> Losses:
        """Losses over the divisors. Of ranks that share the batch, each gives its share of them (see `Losses`), and
        the gradients that it leaves are shares too: what is wanted is their sum over the ranks, not their mean."""
        share = ranks.share(batch)
        hidden_TD, seen_PC = self.hidden(batch, None, share)
        total, nll_T = self._cross_entropy(hidden_TD, share.batch, divisors_2[0])
        nll_T = pad(nll_T, (share.places.start, len(batch.tokens_T) - share.places.stop))
        squared_N = total.new_zeros(0)
        if seen_PC is not None:
            assert batch.noise_PC is not None and batch.pictures_P is not None
            error_P = (seen_PC.float() - batch.noise_PC[share.begun_of_all]).square().mean(1)
            sums_N = error_P.new_zeros(len(batch.latent_grids or ()))
            sums_N = sums_N.index_add(0, batch.pictures_P[share.begun_of_all], error_P)
            squared_N = sums_N / torch.bincount(batch.pictures_P)
            total = total + self.parts.diffusion_weight * squared_N.sum() / divisors_2[1]
        return Losses(total, nll_T, squared_N.detach())

    def _cross_entropy(self, hidden_TD: Tensor, batch: Batch, divisor: Tensor) -> tuple[Tensor, Tensor]:
        z_loss, targets_T, weights_T = self.parts.z_loss, batch.targets_T, batch.weights_T
        if not self.own_codes:
            return self.trunk.head(hidden_TD, Wanted(targets_T, weights_T, divisor, z_loss))
        vocabulary = self.form.vocabulary
        code_T = targets_T - vocabulary.visual_offset
        drawn_T = (code_T >= 0) & (code_T < vocabulary.codebook_size)
        text, nll_T = self.trunk.head(hidden_TD, Wanted(targets_T, weights_T * ~drawn_T, divisor, z_loss))
        at = drawn_T.nonzero()[:, 0]
        wanted = Wanted(code_T[at], weights_T[at], divisor, z_loss)
        codes, nll_codes = self.code_out(self.code_head(hidden_TD[at]), wanted)
        return text + codes, nll_T.index_copy(0, at, nll_codes)


def attention_of(batch: Batch, x_TD: Tensor) -> Attend:
    """The kernel for a batch: one call a document on CPU; on CUDA the varlen kernel for plain causal documents in half
    precision, FlexAttention for all others."""
    if not x_TD.is_cuda:
        return DocumentAttention(batch.lengths, batch.groups_T)
    from models.kernels import FlexAttention, VarlenAttention

    if batch.groups_T is None and x_TD.dtype in (torch.bfloat16, torch.float16):
        return VarlenAttention(batch.lengths)
    lengths = torch.tensor(batch.lengths, device=x_TD.device)
    return FlexAttention(
        torch.repeat_interleave(torch.arange(len(lengths), device=x_TD.device), lengths), None, batch.groups_T
    )


def _mlp(size: int, inner: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, out))


def save_model(model: AnyToAny, folder: Path, step: int) -> None:
    """Weights as safetensors, and config.json: all that is needed beside them."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_weights(weights, config_json(model, step), folder)


def save_weights(weights: Mapping[str, Tensor], config: str, folder: Path) -> None:
    """The same, of the model's whole state on the CPU and what `config_json` gave."""
    tied = json.loads(config)["trunk"]["tied"]
    own = {name: tensor.contiguous() for name, tensor in weights.items() if not (tied and name == "trunk.head.weight")}
    save_file(own, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config)


def config_json(model: AnyToAny, step: int) -> str:
    """What, beside the weights, makes the model."""
    data = {
        "trunk": model.trunk.config.to_json(),
        "parts": asdict(model.parts),
        "format": json.loads(model.form.to_json()),
        "code_size": model.code_size,
        "step": step,
    }
    return json.dumps(data, indent=1, sort_keys=True)


def load_model(folder: Path) -> tuple[AnyToAny, int]:
    """The model of a checkpoint folder, in evaluation mode, and its step."""
    data: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    form = Format.from_json(json.dumps(data["format"]))
    model = AnyToAny(TrunkConfig.from_json(data["trunk"]), Parts(**data["parts"]), form, data["code_size"])
    load_weights(model, folder)
    return model.eval(), data["step"]


def load_weights(model: AnyToAny, folder: Path) -> None:
    """The weights of a checkpoint folder into a model of the same settings."""
    weights = load_file(folder / WEIGHTS_FILE)
    if model.trunk.config.tied:
        weights["trunk.head.weight"] = weights["trunk.embedding.weight"]
    model.load_state_dict(weights)
