"""What is typed: one module a command; each only translates into a request and prints what it came to."""
