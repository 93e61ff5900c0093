"""Habits that every room shares: options, names, commands, output, errors, retries. Imports no other room."""
