"""A run's model answers: prompts, batches, chats, and over HTTP in the form of OpenAI's API."""
