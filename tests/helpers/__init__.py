"""What several test modules share: one topic a module, no tests."""
