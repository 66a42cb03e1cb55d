"""The registered fine-tuning algorithms, one builder function per file."""
