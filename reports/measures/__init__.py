"""Every figure of the report, defined once."""
