"""The webhook that puts the sidecar, and on request the agent, into pods."""
