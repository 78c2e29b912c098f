-- +goose Up

-- Domains are proved again each day: when that was, and how often in a row the DNS has
-- answered without the proof.
ALTER TABLE routes ADD COLUMN checked_at BIGINT; -- NULL before the first time
ALTER TABLE routes ADD COLUMN missed BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE routes DROP COLUMN missed;
ALTER TABLE routes DROP COLUMN checked_at;
