"""GPU operations, each beside its torch reference. Imports torch and triton only."""
