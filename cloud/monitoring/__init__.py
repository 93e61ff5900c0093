"""Cloud Monitoring: queries, the dashboard, the alert policies and their texts, and a client of the API."""
