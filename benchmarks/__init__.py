"""The library side by side with what a user would write otherwise; nothing in it is imported by the library."""
