"""One frozen base, one adapter: texts in, logits and parameters out; knows no client."""
