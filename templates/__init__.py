"""Flex templates."""
