"""What is enforced after every step."""
