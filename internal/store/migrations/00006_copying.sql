-- +goose Up

-- What the VM's guest is a copy of that has not confirmed yet that it is itself; '' for none.
ALTER TABLE vms ADD COLUMN copying TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE vms DROP COLUMN copying;
