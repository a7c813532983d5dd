"""Which rows are a silo's, what they hold, and which of them a round trains on."""
