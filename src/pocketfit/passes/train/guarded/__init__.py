"""Training that does no harm: clipping, a guard with held-out samples, a learning rate that is tried first."""
