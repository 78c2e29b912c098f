-- +goose Up

-- Why a VM sleeps ('' before hatchd knew), and its last activity before, as JSON.
ALTER TABLE vm_sleeps ADD COLUMN rule TEXT NOT NULL DEFAULT '';
ALTER TABLE vm_sleeps ADD COLUMN last_activity TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE vm_sleeps DROP COLUMN last_activity;
ALTER TABLE vm_sleeps DROP COLUMN rule;
