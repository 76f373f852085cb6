"""The formats in which questions are published, one file each; `realm_jax.data.questions` reads them all."""
