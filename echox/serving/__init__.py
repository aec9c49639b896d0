"""A server to talk to: OpenAI's Realtime protocol, text to speech, and a page."""
