"""Live facts, and nothing but facts: the driver, the engine's page and the model's files become one `Observation`."""
