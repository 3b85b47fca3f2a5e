"""Time limits of a deployment, and how many backups and releases a host keeps."""

GATE_SECONDS = 30
# A large database takes its time; SSH itself notices a connection that is lost.
BACKUP_SECONDS = 1800.0
KEPT_BACKUPS = 10
KEPT_RELEASES = 5
