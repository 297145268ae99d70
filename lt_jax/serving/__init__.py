"""Models that answer people: prompts of a command line or a file, and a conversation in the terminal."""
