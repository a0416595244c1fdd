"""Talking to one or two models, and looking into what they say."""
