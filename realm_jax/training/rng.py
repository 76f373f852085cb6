"""Random keys of a step."""

import jax


def dropout_rngs(rng: jax.Array | None, stream: int) -> dict[str, jax.Array]:
    """The `rngs=` of one forward pass; passes of one step use different streams. Without a key: no dropout."""
    return {} if rng is None else {"dropout": jax.random.fold_in(rng, stream)}
