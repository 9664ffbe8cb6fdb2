"""Text from a causal plan: per-row slots, prefill and decode steps, sampling, streaming.

``params`` what a caller may ask for; ``sampling`` logits to a token; ``text`` tokens to text, as it may be shown;
``decoder`` the steps that drive them. Nothing here knows about chats, retrieval or HTTP.
"""
