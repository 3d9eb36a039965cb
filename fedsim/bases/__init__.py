"""Small base models, trained once and offline from data that anybody may have."""
