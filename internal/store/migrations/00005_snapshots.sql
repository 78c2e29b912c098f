-- +goose Up

-- Snapshots of VMs. The VM may have been deleted, but not the image: without it
-- the snapshot cannot be restored or cloned.
CREATE TABLE snapshots (
    id         TEXT    NOT NULL,
    owner_id   TEXT    NOT NULL REFERENCES accounts (id),
    vm_id      TEXT    NOT NULL,
    name       TEXT    NOT NULL, -- '' when it has none
    kind       TEXT    NOT NULL,
    parent_id  TEXT    NOT NULL, -- '' when it has none; that snapshot may be gone
    image_id   TEXT    NOT NULL REFERENCES images (id),
    origin     TEXT    NOT NULL, -- JSON: what the VM was, but for user_data
    machine    TEXT    NOT NULL, -- JSON
    durable    BOOLEAN NOT NULL, -- whole and on disk; else it does not count
    bytes      BIGINT  NOT NULL,
    sums       TEXT    NOT NULL, -- JSON
    created_at BIGINT  NOT NULL,
    user_data  BYTEA   NOT NULL,
    CONSTRAINT snapshots_id PRIMARY KEY (id)
);
CREATE UNIQUE INDEX snapshots_owner_id_name ON snapshots (owner_id, name) WHERE name <> '';
CREATE INDEX snapshots_newest ON snapshots (owner_id, created_at, id);
CREATE INDEX snapshots_vm_id ON snapshots (vm_id, created_at, id);
CREATE INDEX snapshots_image_id ON snapshots (image_id);

ALTER TABLE vms ADD COLUMN snapshot_id TEXT NOT NULL DEFAULT ''; -- '' for none; it may be gone
ALTER TABLE vms ADD COLUMN instance TEXT NOT NULL DEFAULT ''; -- what cloud-init in a copied guest knows it as
ALTER TABLE vm_sleeps ADD COLUMN staged BOOLEAN NOT NULL DEFAULT FALSE;

-- +goose Down
ALTER TABLE vm_sleeps DROP COLUMN staged;
ALTER TABLE vms DROP COLUMN instance;
ALTER TABLE vms DROP COLUMN snapshot_id;
DROP TABLE snapshots;
