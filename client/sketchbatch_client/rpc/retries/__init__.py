"""Decide when to retry: the retry policy, the retry state of one request, and the AIMD limit of a bulk call."""
