"""Command lines: flags -> config -> one call into the library. No logic lives here."""
