"""What a method's models read for one example, and what that takes: FLOPs, and bytes of memory, by the shapes of their arrays.

A pass answers the same questions whatever its model is: `flops` and `recomputed_flops` of an example; `layer_bytes` of all layers'
matrices; what one pass over a micro-batch reads and writes of them (`moved_weight_bytes`) and of an example's activations
(`moved_activation_bytes`), every matrix product reading its two arrays and writing one, all else fused into them; `kept_bytes` of an
example until the backward pass, at least, and beside them `working_bytes`, of the one layer that is made again; how often parameters cut over devices are gathered (`gathers`); and bytes of an example's
hidden states that are summed where layers are cut over devices (`summed_bytes`).
"""

from typing import NamedTuple

import jax.numpy as jnp

from realm_jax.models import (
    LanguageModelConfig,
    TransformerConfig,
    forward_flops,
    language_model_flops,
    source_attention_flops,
)

FLOAT32 = 4


class EncoderPass(NamedTuple):
    """What an encoder, or a decoder with teacher forcing, reads for one example, forward and, if it is trained, backward: so many
    rows of one length."""

    encoder: TransformerConfig
    rows: int
    length: int
    trained: bool = True
    source_len: int = 0  # of what a decoder's layers attend to beside their own positions; 0: an encoder

    @property
    def forward_flops(self) -> float:
        of_row = forward_flops(self.encoder, self.length)
        if self.source_len:
            of_row += source_attention_flops(self.encoder, self.source_len, self.length)
        return self.rows * of_row

    @property
    def flops(self) -> float:
        return self.forward_flops * (3.0 if self.trained else 1.0)

    @property
    def recomputed_flops(self) -> float:
        """Of the backward pass: all of the forward pass once more, or attention's pairs alone."""
        config = self.encoder
        if not self.trained or not config.remat:
            return 0.0
        if config.makes_products_again:
            return self.forward_flops
        pairs = self.length * (self.length + self.source_len)
        return 4.0 * self.rows * config.num_layers * pairs * config.hidden_size

    @property
    def layer_bytes(self) -> float:
        config, attentions = self.encoder, 2 if self.source_len else 1
        hidden, wide = config.hidden_size, config.intermediate_size
        return FLOAT32 * config.num_layers * (4.0 * attentions * hidden * hidden + 2.0 * hidden * wide)

    @property
    def moved_weight_bytes(self) -> float:
        return (self._products + 2 * self.trained) * self.layer_bytes  # the gradient is read and written, too

    @property
    def forward_bytes(self) -> float:
        """Of the activations of one row, forward."""
        config, length, source_len = self.encoder, self.length, self.source_len
        hidden, wide, size = config.hidden_size, config.intermediate_size, jnp.dtype(config.dtype).itemsize
        # query, key, value, out: 8 hidden; attention's two products: 4 hidden; feed-forward: 2 hidden, 2 wide
        of_tokens = length * (14.0 * hidden + 2 * wide) * size
        if source_len:  # query, out and attention's own: 6 hidden; of the source key, value and attention's: 6 hidden
            of_tokens += 6.0 * (length + source_len) * hidden * size
        of_pairs = length * 2 * config.num_heads * (length + source_len) * FLOAT32  # logits, in float32
        return config.num_layers * (of_tokens + of_pairs)

    @property
    def moved_activation_bytes(self) -> float:
        return self._products * self.rows * self.forward_bytes

    @property
    def kept_bytes(self) -> float:
        """Each layer's input, or what its products give."""
        if not self.trained:
            return 0.0
        config, size = self.encoder, jnp.dtype(self.encoder.dtype).itemsize
        of_token, of_source = config.hidden_size * size, 0
        if not config.remat or config.remat_saves == "products":
            of_token = (6 * config.hidden_size + config.intermediate_size) * size
            if self.source_len:
                of_token += 3 * config.hidden_size * size
                of_source = 2 * config.hidden_size * size  # keys and values
        if not config.remat:
            of_token += config.num_heads * (self.length + self.source_len) * FLOAT32
        return float(self.rows * config.num_layers * (self.length * of_token + self.source_len * of_source))

    @property
    def working_bytes(self) -> float:
        return 0.0  # little at an encoder's lengths: not counted

    @property
    def gathers(self) -> int:
        return 1 + self.trained

    @property
    def summed_bytes(self) -> float:
        config = self.encoder
        sums = (4 + 2 * config.makes_products_again) if self.trained else 2  # two a layer, forward, backward, again
        hidden = self.rows * self.length * config.hidden_size * jnp.dtype(config.dtype).itemsize
        return float(sums * config.num_layers * hidden)

    @property
    def _products(self) -> int:
        """How many products there are for each of the forward pass: itself, again, and two backward."""
        return 3 + self.encoder.makes_products_again if self.trained else 1


class LanguageModelPass(NamedTuple):
    """What a language model reads for one example, forward and, if it is trained, backward: so many rows of one length.

    Where the model has an adapter (`LanguageModelConfig.lora`), training is of the adapter: of a frozen matrix the backward pass makes the
    gradient of what it read, not its own, so that two products of three are left of it. Attention's two products are of activations and
    have both gradients as ever, and so have the adapter's. The first layer's input needs no gradient, but layers that are scanned over
    all get one.
    """

    model: LanguageModelConfig
    rows: int
    length: int
    trained: bool = True

    @property
    def forward_flops(self) -> float:
        return self.rows * language_model_flops(self.model, self.length)

    @property
    def flops(self) -> float:
        if not self.trained:
            return self.forward_flops
        return 3.0 * self.forward_flops - (self._matrix_flops if self._base_is_frozen else 0.0)

    @property
    def recomputed_flops(self) -> float:
        """Of the backward pass: all of the forward pass once more, or attention's pairs alone."""
        config = self.model
        if not self.trained or not config.remat:
            return 0.0
        if config.makes_products_again:
            return self.forward_flops
        return 4.0 * self.rows * config.num_layers * self.length**2 * config.num_heads * config.head_size

    @property
    def layer_bytes(self) -> float:
        return self._base_bytes + self._adapter_bytes

    @property
    def moved_weight_bytes(self) -> float:
        base = self._products - 1 if self._base_is_frozen else self._products + 2 * self.trained
        return base * self._base_bytes + (self._products + 2 * self.trained) * self._adapter_bytes

    @property
    def moved_activation_bytes(self) -> float:
        config, length, size = self.model, self.length, jnp.dtype(self.model.dtype).itemsize
        heads, kv_heads = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        of_matrices = sum(read + made for read, made in config.products.values()) * size
        of_adapter = 0
        if config.lora is not None:
            of_adapter = sum(sum(config.products[name]) + 2 * config.lora.rank for name in config.lora.products) * size
        # queries, keys, values and what is found; logits of all pairs in float32, written and read
        of_attention = 2 * (heads + kv_heads) * size + 2 * config.num_heads * length * FLOAT32
        times = self._products
        of_token = (times - self._base_is_frozen) * of_matrices + times * (of_adapter + of_attention)
        return float(self.rows * length * config.num_layers * of_token)

    @property
    def kept_bytes(self) -> float:
        """Each layer's input, or also what its products give but for the last, which is only added to that input."""
        config = self.model
        if not self.trained:
            return 0.0
        of_token = config.hidden_size * jnp.dtype(config.dtype).itemsize
        if not config.remat or config.remat_saves == "products":
            of_token += self._product_bytes
        if not config.remat:
            of_token += self._pair_bytes
        return float(self.rows * config.num_layers * self.length * of_token)

    @property
    def working_bytes(self) -> float:
        config = self.model
        if not self.trained or not config.remat:
            return 0.0
        of_token = self._pair_bytes + (self._product_bytes if config.remat_saves == "nothing" else 0)
        return float(self.rows * self.length * of_token)

    @property
    def _product_bytes(self) -> int:
        """Of a position, what the products of a layer give that the backward pass reads."""
        config = self.model
        numbers = sum(made for name, (_, made) in config.products.items() if name != "wo")
        numbers += len(config.lora.products) * config.lora.rank if config.lora is not None else 0
        return numbers * jnp.dtype(config.dtype).itemsize

    @property
    def _pair_bytes(self) -> int:
        """Of a position, the weights with which every head attends."""
        return self.model.num_heads * self.length * FLOAT32

    @property
    def gathers(self) -> int:
        return 1 + self.trained

    @property
    def summed_bytes(self) -> float:
        config = self.model
        sums = (4 + 2 * config.makes_products_again) if self.trained else 2  # two a layer, forward, backward, again
        hidden = self.rows * self.length * config.hidden_size * jnp.dtype(config.dtype).itemsize
        return float(sums * config.num_layers * hidden)

    @property
    def _base_is_frozen(self) -> bool:
        return self.trained and self.model.lora is not None

    @property
    def _products(self) -> int:
        """How many products there are for each of the forward pass: itself, again, and two backward."""
        return 3 + self.model.makes_products_again if self.trained else 1

    @property
    def _base_bytes(self) -> float:
        return float(FLOAT32 * self.model.num_layers * sum(read * made for read, made in self.model.products.values()))

    @property
    def _adapter_bytes(self) -> float:
        return float(FLOAT32 * self.model.num_layers * self.model.adapter_size)

    @property
    def _matrix_flops(self) -> float:
        """Of the layers' own matrices, forward."""
        return 2.0 * self.rows * self.length * self._base_bytes / FLOAT32


class Logits(NamedTuple):
    """Rows of logits over a vocabulary that are computed for one example."""

    rows: int
    hidden_size: int
    vocab_size: int
    trained: bool = True  # false: the table has no gradient, as a frozen language model's
    is_cut: bool = False  # whether the table is cut over the tensor axis by its vocabulary, as a language model's is

    @property
    def working_bytes(self) -> float:
        """Of all rows at once, in float32; a masked LM's few are not counted."""
        return float(FLOAT32 * self.rows * self.vocab_size) if self.is_cut else 0.0

    @property
    def forward_flops(self) -> float:
        return 2.0 * self.rows * self.hidden_size * self.vocab_size

    @property
    def products(self) -> int:
        """With the table: forward, and backward for what was read and, if it is trained, for itself."""
        return 2 + self.trained

    @property
    def flops(self) -> float:
        return self.products * self.forward_flops
