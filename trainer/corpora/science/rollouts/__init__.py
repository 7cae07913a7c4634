"""Tasks answered by a served model, with a ledger of what was asked."""
