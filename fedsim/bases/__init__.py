"""Small base models: trained offline from data that anybody may have, or brought from a package."""
