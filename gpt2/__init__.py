"""GPT-2 in plain PyTorch, and everything that trains it."""
