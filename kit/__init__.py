"""Plumbing of the scripts, in floors: a module here imports only from floors below its own."""
