"""A decoder language model, Llama to the last operation (Touvron et al. 2023, arXiv:2302.13971 and 2307.09288).

RMSNorm before each part of a layer, rotary positions, grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), SwiGLU (Shazeer
2020, arXiv:2002.05202). In training it reads rows into which several texts may be packed. Generating, it reads a prompt once and then
takes one position a step; several beams share their prompt's keys and values.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from realm_jax.models.attention import MASKED_LOGIT
from realm_jax.models.decoder import DecoderCache
from realm_jax.models.lora import LORA, AdaptedDense, LoraConfig
from realm_jax.models.products import dense_dot_general
from realm_jax.models.rotary import RotaryConfig, angles_of, turn
from realm_jax.models.rows import rows_apart
from realm_jax.models.transformer import REMAT_POLICIES, KeysValues
from realm_jax.typed import check_fields


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Shape and numerics, and the ids that text begins and ends with; the defaults are Llama 2's of 7B."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = (
        32  # a divisor of num_heads: so many heads of keys and values are shared by groups of queries' heads
    )
    head_dim: int | None = None  # None: hidden_size / num_heads
    intermediate_size: int = 11008
    max_length: int = 4096  # positions that it was trained for
    rotary: RotaryConfig = RotaryConfig()
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tied_output: bool = False  # the table of token embeddings is the output, too
    attention_bias: bool = False  # of the products that make queries, keys, values, and of the attention's output
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 0  # fills rows; what stands there changes nothing
    dtype: str = "float32"  # of activations; parameters are always float32
    remat: bool = False  # see TransformerConfig, as the next two
    remat_saves: Literal["nothing", "products"] = "nothing"
    unroll_layers: int = 1
    lora: LoraConfig | None = None  # an adapter beside the parameters, which then is what is trained

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "intermediate_size",
            "max_length",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"LanguageModelConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"LanguageModelConfig.num_kv_heads: expected a divisor of num_heads={self.num_heads}, got {self.num_kv_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"LanguageModelConfig.hidden_size: expected a multiple of num_heads={self.num_heads}, got {self.hidden_size}; "
                "change one of them, or set head_dim"
            )
        if self.head_size < 2 or self.head_size % 2:
            raise ValueError(
                f"rotary positions turn pairs: heads must have an even size, got {self.head_size}; set head_dim"
            )
        for name in ("bos_id", "eos_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"LanguageModelConfig.{name}: expected an id below vocab_size={self.vocab_size}, got {getattr(self, name)}; "
                    "take the ids of the model's tokenizer"
                )
        if self.remat_saves != "nothing" and not self.remat:
            raise ValueError(
                "LanguageModelConfig.remat_saves says what remat keeps, and remat is False; set remat=True"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"LanguageModelConfig.dtype: expected 'float32' or 'bfloat16', got {self.dtype!r}")

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer by name: how many numbers of a position each reads, and how many it makes."""
        hidden, wide = self.hidden_size, self.intermediate_size
        heads, kv_heads = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        attention = {
            "query": (hidden, heads),
            "key": (hidden, kv_heads),
            "value": (hidden, kv_heads),
            "out": (heads, hidden),
        }
        return attention | {"gate": (hidden, wide), "wi": (hidden, wide), "wo": (wide, hidden)}

    @property
    def adapter_size(self) -> int:
        """Numbers of one layer's adapter: rank · (features + outputs) of every product that has one."""
        return 0 if self.lora is None else sum(self.lora.rank * sum(self.products[name]) for name in self.lora.products)

    @property
    def makes_products_again(self) -> bool:
        """Whether the backward pass computes the products with weights once more."""
        return self.remat and self.remat_saves == "nothing"


def check_heads(config: LanguageModelConfig, tensor: int) -> None:
    """Refuses devices among which the queries' heads cannot be shared out; those of keys and values, where they are fewer, may be cut.

    Raises:
      ValueError: naming both numbers.
    """
    if config.num_heads % tensor:
        raise ValueError(
            f"the mesh's tensor axis: expected a divisor of the language model's num_heads={config.num_heads}, got {tensor} devices; "
            "set MeshConfig.tensor to a divisor, or cut the parameters with fsdp"
        )


def language_model_flops(config: LanguageModelConfig, length: int) -> float:
    """Multiply-adds, times two, of one forward pass over one row, logits not counted: the matrices, their adapters, and attention over
    all earlier positions, counted as over all."""
    numbers = sum(read * made for read, made in config.products.values()) + config.adapter_size
    return float(config.num_layers * length * (2 * numbers + 4 * length * config.num_heads * config.head_size))


class Prompt(NamedTuple):
    """What each step of a generation reads of the prompts: keys and values of every layer, and where a prompt has a token."""

    keys: Float[Array, "layers prompts prompt_len kv_heads head_dim"]
    values: Float[Array, "layers prompts prompt_len kv_heads head_dim"]
    mask: Bool[Array, "prompts prompt_len"]


def empty_continuation(config: LanguageModelConfig, prompts: int, beams: int, target_len: int) -> DecoderCache:
    """The cache before the first of `target_len` steps."""
    shape = (config.num_layers, prompts, beams, target_len, config.num_kv_heads, config.head_size)
    zeros = jnp.zeros(shape, jnp.dtype(config.dtype))
    return DecoderCache(zeros, zeros)


def attend_grouped(
    query: Float[Array, "rows queries num_heads head_dim"],
    read: tuple[KeysValues, ...],
    seen: tuple[Bool[Array, "rows queries _"], ...],
) -> Float[Array, "rows queries num_heads head_dim"]:
    """softmax(QKᵀ / √d) V over the keys of all parts together; each head of keys serves a group of the queries' heads.

    Args:
      query: float32 or bfloat16; logits, softmax and sums are float32.
      read: keys and values in one part or in several, which are not copied together: [rows, length, kv_heads, head_dim] where all
        queries of a row read the same, [rows, queries, length, kv_heads, head_dim] where each has its own.
      seen: for each part, which keys a query sees. A query that sees none gets the mean of all values, which means nothing.
    """
    rows, queries, num_heads, head_dim = query.shape
    kv_heads = read[0].keys.shape[2]
    grouped = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    grouped = grouped.reshape(rows, queries, kv_heads, num_heads // kv_heads, head_dim)
    logits, of_keys = [], []
    for part, mask in zip(read, seen, strict=True):
        of_keys.append("bqkgh" if part.keys.ndim == 5 else "bkgh")
        products = jnp.einsum(f"bqgrh,{of_keys[-1]}->bgrqk", grouped, part.keys, preferred_element_type=jnp.float32)
        logits.append(jnp.where(mask[:, None, None], products, MASKED_LOGIT))
    highest = jax.lax.stop_gradient(jnp.stack([part.max(axis=-1) for part in logits]).max(axis=0))[..., None]
    context, sums = jnp.float32(0.0), jnp.float32(0.0)
    for products, subscripts, values in zip(logits, of_keys, read, strict=True):
        weights = jnp.exp(products - highest).astype(query.dtype)
        sums += weights.sum(axis=-1, dtype=jnp.float32)
        context += jnp.einsum(f"bgrqk,{subscripts}->bqgrh", weights, values.values, preferred_element_type=jnp.float32)
    context = context / sums.transpose(0, 3, 1, 2)[..., None]
    return context.astype(query.dtype).reshape(rows, queries, num_heads, head_dim)


class RmsNorm(nn.Module):
    """x / √(mean of x² + ε) in float32, times a learned scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    epsilon: float

    @nn.compact
    def __call__(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows hidden"]:
        scale = self.param("scale", nn.initializers.ones_init(), (hidden.shape[-1],))
        wide = hidden.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt((wide * wide).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(scale.astype(hidden.dtype), tuple(range(hidden.ndim - 1)))
        return scale * normal.astype(hidden.dtype)


class GroupedQueryAttention(nn.Module):
    """Attention in parts: queries, keys and values of hidden states at positions, and what the queries find."""

    config: LanguageModelConfig

    def setup(self) -> None:
        config = self.config
        self.query, self.key, self.value, self.out = (
            _dense(config, name, config.attention_bias) for name in ("query", "key", "value", "out")
        )

    def queries_keys_values(
        self, hidden: Float[Array, "*rows hidden"], angles: Float[Array, "*#rows half"]
    ) -> tuple[Float[Array, "*rows num_heads head_dim"], KeysValues]:
        query, key, value = (
            made.reshape(*hidden.shape[:-1], -1, self.config.head_size)
            for made in (self.query(hidden), self.key(hidden), self.value(hidden))
        )
        return turn(query, angles), KeysValues(turn(key, angles), value)

    def read(
        self,
        query: Float[Array, "rows queries num_heads head_dim"],
        read: tuple[KeysValues, ...],
        seen: tuple[Bool[Array, "rows queries _"], ...],
    ) -> Float[Array, "rows queries hidden"]:
        """See `attend_grouped`."""
        return self.out(attend_grouped(query, read, seen).reshape(*query.shape[:2], -1))


class SwiGlu(nn.Module):
    """(silu(x W_gate) ∘ x W_in) W_out."""

    config: LanguageModelConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows hidden"]:
        config = self.config
        gate, inner = (_dense(config, name, name=name)(hidden) for name in ("gate", "wi"))
        return _dense(config, "wo", name="wo")(nn.silu(gate) * inner)


class LanguageModelLayer(nn.Module):
    """One layer, each part of it after an RMSNorm and added to what it read."""

    config: LanguageModelConfig

    def setup(self) -> None:
        config = self.config
        self.attention, self.attention_norm = GroupedQueryAttention(config), RmsNorm(config.rms_norm_eps)
        self.feed_forward, self.output_norm = SwiGlu(config), RmsNorm(config.rms_norm_eps)

    def __call__(
        self,
        hidden: Float[Array, "rows length hidden"],
        angles: Float[Array, "#rows length half"],
        seen: Bool[Array, "rows length length"],
    ) -> tuple[Float[Array, "rows length hidden"], KeysValues]:
        """Of whole rows; with what their positions hold for later ones."""
        query, made = self.attention.queries_keys_values(self.attention_norm(hidden), angles)
        hidden = hidden + self.attention.read(query, (made,), (seen,))
        return hidden + self.feed_forward(self.output_norm(hidden)), made

    def step(
        self,
        hidden: Float[Array, "prompts beams hidden"],
        angles: Float[Array, "prompts 1 half"],
        position: Int32[Array, ""],
        layer: Int32[Array, ""],
        prompt: KeysValues,
        prompt_mask: Bool[Array, "prompts prompt_len"],
        cache: DecoderCache,
    ) -> tuple[Float[Array, "prompts beams hidden"], DecoderCache]:
        """One position of every beam; the cache is that of all layers, this one's row `layer`."""
        prompts, beams, _ = hidden.shape
        query, made = self.attention.queries_keys_values(self.attention_norm(hidden), angles)
        cache = DecoderCache(
            *(
                jax.lax.dynamic_update_slice(kept, new[None, :, :, None], (layer, 0, 0, position, 0, 0))
                for kept, new in zip(cache, made, strict=True)
            )
        )
        own = KeysValues(*(kept[layer] for kept in cache))  # [prompts, beams, target_len, kv_heads, head_dim]
        in_prompt = jnp.broadcast_to(prompt_mask[:, None], (prompts, beams, prompt_mask.shape[1]))
        earlier = jnp.arange(cache.keys.shape[3], dtype=jnp.int32) <= position
        of_own = jnp.broadcast_to(earlier, (prompts, beams, earlier.shape[0]))
        hidden = hidden + self.attention.read(query, (prompt, own), (in_prompt, of_own))
        return hidden + self.feed_forward(self.output_norm(hidden)), cache


class LanguageModel(nn.Module):
    """Token ids to logits of the next token. Parameters of the layers are stacked on a leading axis of size num_layers.

    With `config.lora` there is a collection "lora" beside "params", stacked likewise; `apply` it with both (see models.lora).

    Use with `apply(..., method="hidden_states")` and so on. Training, `__call__`, or `hidden_states` and `logits` where not all positions
    count; generating, `read_prompts` once, and `step` for each position.
    """

    config: LanguageModelConfig

    def setup(self) -> None:
        config = self.config
        self.token_embedding = nn.Embed(
            config.vocab_size, config.hidden_size, embedding_init=nn.initializers.normal(config.initializer_range)
        )
        layer = LanguageModelLayer
        if config.remat:
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT_POLICIES[config.remat_saves])
        self.layers = layer(config)
        self.norm = RmsNorm(config.rms_norm_eps)
        if not config.tied_output:
            shape = (config.hidden_size, config.vocab_size)
            self.output = self.param("output", nn.initializers.normal(config.initializer_range), shape)

    def hidden_states(
        self,
        ids: Int32[Array, "rows length"],
        segments: Int32[Array, "rows length"],
        positions: Int32[Array, "rows length"] | None = None,
    ) -> Float[Array, "rows length hidden"]:
        """Hidden states, causal: what stands at a position changes nothing before it, nor in another segment.

        Args:
          ids: token ids.
          segments: which of the texts packed into a row a token belongs to, from 1 on; 0 on padding, whose hidden states mean nothing.
          positions: of each token in its text; None: of a row that holds one text, from 0 on.
        """
        return self._over_rows(ids, segments, positions, keep=False)[0]

    def __call__(
        self,
        ids: Int32[Array, "rows length"],
        segments: Int32[Array, "rows length"],
        positions: Int32[Array, "rows length"] | None = None,
    ) -> Float[Array, "rows length vocab"]:
        """Logits of the next token at every position, in float32; see `hidden_states`."""
        return self.logits(self.hidden_states(ids, segments, positions))

    def read_prompts(self, ids: Int32[Array, "prompts prompt_len"], mask: Bool[Array, "prompts prompt_len"]) -> Prompt:
        """What every step reads of the prompts.

        Args:
          ids: tokens of the prompts but for each one's last, which is the first step's input.
          mask: true where there is a token; tokens come before padding.
        """
        _, made = self._over_rows(ids, mask.astype(jnp.int32), None, keep=True)
        return Prompt(made.keys, made.values, mask)

    def step(
        self,
        ids: Int32[Array, "prompts beams"],
        position: Int32[Array, ""],
        prompt: Prompt,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "prompts beams vocab"], DecoderCache]:
        """Logits of the next token of every beam, in float32, and the cache with this position written.

        Args:
          ids: the inputs at the position: at 0 the prompts' last tokens, then what was generated.
          position: after the prompt, from 0, below the cache's target_len; the cache holds those before.
          prompt: of `read_prompts`; the beams of a prompt share it.
          cache: of the step before, or `empty_continuation`.
        """
        config = self.config
        at = prompt.mask.sum(axis=1, dtype=jnp.int32) + position
        angles = angles_of(at, config.rotary, config.head_size)[:, None]

        # The cache is carried whole, not scanned over: one position of it is written, and the rest copied nowhere.
        def body(
            layer: LanguageModelLayer, carry: tuple[jax.Array, DecoderCache], number: jax.Array, read: KeysValues
        ) -> tuple[tuple[jax.Array, DecoderCache], None]:
            hidden, cache = carry
            return layer.step(hidden, angles, position, number, read, prompt.mask, cache), None

        numbers = jnp.arange(config.num_layers, dtype=jnp.int32)
        (hidden, cache), _ = self._over_layers(body)(
            (self.embed(ids), cache), numbers, KeysValues(prompt.keys, prompt.values)
        )
        return self.next_token(hidden), cache

    def next_token(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows vocab"]:
        """Logits of the next token, in float32, from what the last layer gives."""
        return self.logits(self.norm(hidden))

    def logits(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows vocab"]:
        """Of the next token, in float32, from `hidden_states`."""
        table = self.token_embedding.embedding.T if self.config.tied_output else self.output
        return jnp.einsum("...h,hv->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def embed(self, ids: Int32[Array, "rows length"]) -> Float[Array, "rows length hidden"]:
        """What the first layer reads."""
        return rows_apart(self.token_embedding(ids).astype(jnp.dtype(self.config.dtype)))

    def _over_rows(
        self, ids: jax.Array, segments: jax.Array, positions: jax.Array | None, keep: bool
    ) -> tuple[jax.Array, Any]:
        """Hidden states after the last norm and, to be kept, every layer's keys and values."""
        config, length = self.config, ids.shape[1]
        at = jnp.arange(length, dtype=jnp.int32)[None] if positions is None else positions
        angles = angles_of(at, config.rotary, config.head_size)
        same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
        seen = same & jnp.tri(length, dtype=bool)[None]

        def body(layer: LanguageModelLayer, hidden: jax.Array) -> tuple[jax.Array, KeysValues | None]:
            hidden, made = layer(hidden, angles, seen)
            return rows_apart(hidden), made if keep else None

        hidden, made = self._over_layers(body)(self.embed(ids))
        return self.norm(hidden), made

    def _over_layers(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """`body(layer, carry, *of the layer)`, layer after layer."""
        scanned = nn.scan(
            body,
            variable_axes={"params": 0, LORA: 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.num_layers,
            unroll=min(self.config.unroll_layers, self.config.num_layers),
        )
        return lambda *arguments: scanned(self.layers, *arguments)


def _dense(config: LanguageModelConfig, product: str, use_bias: bool = False, name: str | None = None) -> nn.Module:
    """One of `LanguageModelConfig.products`, with its adapter where there is one."""
    settings: dict[str, Any] = {
        "features": config.products[product][1],
        "use_bias": use_bias,
        "dtype": jnp.dtype(config.dtype),
        "kernel_init": nn.initializers.normal(config.initializer_range),
        "name": name,
    }
    if config.lora is not None and product in config.lora.products:
        return AdaptedDense(adapter=config.lora, **settings)
    return nn.Dense(dot_general=dense_dot_general, **settings)
