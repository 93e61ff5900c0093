"""Habits that every room shares: options, commands, output, errors, retries. Imports no other room."""
