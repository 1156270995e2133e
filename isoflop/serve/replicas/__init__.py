"""A model in several processes, as many as its queue is long, by Ray Serve.

The gateway stays one, and with it keys, limits, metrics, the audit log and TLS: what Ray Serve carries are
calls of engines. Its own HTTP proxy, which knows nothing of these, is never started.
"""
