"""Question sets, chat templates and the fixed history of later turns."""
