"""What the cells of realm_tpu.ipynb call; each module is for one of its steps."""
