"""The audits, one file each; only the registry knows them."""
