"""Models that answer: prompts in batches, health, and replies looked at token by token and layer by layer."""
