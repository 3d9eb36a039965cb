"""The unlearning methods, one file each; only the registry knows them."""
