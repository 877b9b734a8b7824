"""Embeddings: a public MobileFaceNet by its nearness to the original, and a network trained with an angular margin."""
