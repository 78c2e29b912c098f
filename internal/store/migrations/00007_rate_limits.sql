-- +goose Up
ALTER TABLE vms ADD COLUMN rate_limits TEXT NOT NULL DEFAULT '{}'; -- JSON

-- +goose Down
ALTER TABLE vms DROP COLUMN rate_limits;
