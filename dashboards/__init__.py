"""What people look at; reads through infra and pipelines."""
