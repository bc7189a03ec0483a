"""Retry policy, the state of one request's attempts, and the AIMD limit of requests in flight."""
