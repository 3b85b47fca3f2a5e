"""One module for each revision; `migrations.HEAD` names the newest."""
