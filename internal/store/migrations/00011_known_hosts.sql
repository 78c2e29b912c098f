-- +goose Up

-- The hosts whose data directories have used this database.
CREATE TABLE hosts (id TEXT PRIMARY KEY);
INSERT INTO hosts (id)
SELECT host_id FROM vms WHERE host_id <> ''
UNION SELECT host_id FROM snapshots WHERE host_id <> '';

-- +goose Down
DROP TABLE hosts;
