"""The checks before a launch: storage, services and permissions that a job needs."""
