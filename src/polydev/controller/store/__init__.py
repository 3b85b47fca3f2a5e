"""The database's tables, and the only code that reads and writes them: a class for each noun."""
