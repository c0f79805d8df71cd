"""Proxies: small MoE language models, trained and measured."""
