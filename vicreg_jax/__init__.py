"""VICReg self-supervised learning in JAX and Flax."""
