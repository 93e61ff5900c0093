"""The checks before a launch: storage, services, places, and the permissions of caller and workers."""
