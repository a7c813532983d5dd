"""A run's model over HTTP, in the form of OpenAI's API: existing clients talk to it."""
