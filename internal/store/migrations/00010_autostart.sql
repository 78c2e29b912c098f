-- +goose Up

-- What hatchd brings the VM back to ('running', 'paused') because it went down with
-- the host; '' otherwise.
ALTER TABLE vms ADD COLUMN autostart TEXT NOT NULL DEFAULT '';

-- The largest column comes last again, so that lists need not read past it.
ALTER TABLE vms ADD COLUMN user_data_last BYTEA NOT NULL DEFAULT '';
UPDATE vms SET user_data_last = user_data;
ALTER TABLE vms DROP COLUMN user_data;
ALTER TABLE vms RENAME COLUMN user_data_last TO user_data;

-- +goose Down
ALTER TABLE vms DROP COLUMN autostart;
