"""Delta transcoders: what did finetuning change inside a language model? Plain PyTorch, no Lightning."""
