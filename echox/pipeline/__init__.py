"""Pipeline: recipes from their text to a finished run, and what the commands do around one."""
