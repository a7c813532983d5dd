"""Files and datasets to records, and records to rows."""
