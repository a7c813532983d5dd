"""The base model, LoRA on it, the algebra of adapters, and generation."""
