"""The events of a timeline, one file each: how it is read, what it changes, what it asks of clients."""
