"""Was it worth it: the models that a run is held against, how they do, and how sure that is."""
