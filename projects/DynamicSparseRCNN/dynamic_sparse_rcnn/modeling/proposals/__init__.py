"""The proposals that the cascade starts from."""
