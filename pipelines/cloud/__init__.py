"""Dataflow jobs and templates, through Google's own clients."""
