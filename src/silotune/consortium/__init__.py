"""The coordinator's side of a consortium: who its members are, how they come in, and what of it the network reaches."""
