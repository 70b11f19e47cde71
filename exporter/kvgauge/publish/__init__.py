"""Facts, judgement and advice made visible: the metrics page, the JSON API, the live page."""
