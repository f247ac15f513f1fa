"""The recipe that trains pocket-vl, the model that ships inside mmserve. Not part of the served package."""
