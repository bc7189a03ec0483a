"""Calls the service: connections, requests, retries, answers; one set of rules for threads and for asyncio."""
