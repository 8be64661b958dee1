"""What runs (graphs) and how: key, plan, run, lineage."""
