"""Connect to servers: targets, credentials and the connection pool."""
