"""What may travel: the adapter as one array with a manifest, and messages of declared fields only."""
