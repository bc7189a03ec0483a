"""Score whole files through the service, in order and in constant memory."""
