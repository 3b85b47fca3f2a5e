"""The database: its tables, and the only code that reads and writes them."""
