"""The server: engines behind one interface, and an OpenAI-compatible gateway that is closed by default.

client -> guard (keys, limits) -> routes -> masking -> engine -> masking -> client
                                   |-> meters (metrics), audit log, feedback
"""
