"""The reference model: its definition, its training and its export in Hugging Face format."""
