-- +goose Up

-- When a domain was last looked up, also in vain: others come first then.
ALTER TABLE routes ADD COLUMN tried_at BIGINT; -- NULL before the first time

-- +goose Down
ALTER TABLE routes DROP COLUMN tried_at;
