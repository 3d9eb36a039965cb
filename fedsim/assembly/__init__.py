"""The only place that knows concrete classes: a scenario in, a checked simulation out."""
