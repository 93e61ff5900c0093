"""The Flex templates: metadata, container specs, the image, and the program that the launcher runs."""
