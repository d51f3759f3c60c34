"""Runs as a service over HTTP and WebSocket, and its page."""
