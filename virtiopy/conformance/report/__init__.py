"""What the tests came to: results, verdicts, and the reports that show them."""
