"""The gateway: an OpenAI-compatible server behind which a policy decides how many are drawn."""
