-- +goose Up

-- The kind of clone that the VM is until its guest has confirmed its identity; '' otherwise.
ALTER TABLE vms ADD COLUMN copying TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE vms DROP COLUMN copying;
