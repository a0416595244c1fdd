"""Vocabularies: what rows of embeddings stand for, one tokenizer of several, chat templates and special tokens."""
