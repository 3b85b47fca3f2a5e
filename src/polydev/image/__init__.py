"""Recipe → layers → image → booted VM → spec report → golden image."""
