"""A page to draw on: `page.html`, the server that hands it out, and the answers it asks for."""
