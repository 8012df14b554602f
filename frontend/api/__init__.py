"""The HTTP API: one file for each endpoint; `routes` puts them on one router."""
