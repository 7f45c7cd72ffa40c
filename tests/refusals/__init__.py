"""All that a user can be refused for, by subject."""
