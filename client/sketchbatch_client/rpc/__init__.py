"""Send requests to the service: connections, retries, coalescing, and one set of rules for threads and asyncio."""
