-- Conventions
--   Times are microseconds since 1970 in UTC. JSON is TEXT, which only Go writes
--   and reads. Bytes from a client are BYTEA, because PostgreSQL's TEXT cannot
--   contain a NUL.
--   Every unique constraint is named table_column_column: internal/store
--   recognises violations by these names, and SQLite reports only the columns.

-- +goose Up
CREATE TABLE accounts (
    id         TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    CONSTRAINT accounts_id PRIMARY KEY (id)
);

CREATE TABLE api_keys (
    id           TEXT   NOT NULL,
    owner_id     TEXT   NOT NULL REFERENCES accounts (id),
    name         TEXT   NOT NULL,
    hash         BYTEA  NOT NULL, -- SHA-256 of the secret
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT,
    CONSTRAINT api_keys_id PRIMARY KEY (id)
);
CREATE UNIQUE INDEX api_keys_hash ON api_keys (hash);
CREATE UNIQUE INDEX api_keys_owner_id_name ON api_keys (owner_id, name);

CREATE TABLE images (
    id             TEXT    NOT NULL,
    owner_id       TEXT    NOT NULL REFERENCES accounts (id),
    name           TEXT    NOT NULL, -- '' when it has none
    kernel         TEXT    NOT NULL, -- JSON
    kernel_version TEXT    NOT NULL,
    modules_path   TEXT    NOT NULL,
    rootfs         TEXT    NOT NULL, -- JSON
    rootfs_format  TEXT    NOT NULL,
    disk_mode      TEXT    NOT NULL,
    boot_args      TEXT    NOT NULL,
    cloud_init     BOOLEAN NOT NULL,
    created_at     BIGINT  NOT NULL,
    CONSTRAINT images_id PRIMARY KEY (id)
);
CREATE UNIQUE INDEX images_owner_id_name ON images (owner_id, name) WHERE name <> '';
CREATE INDEX images_newest ON images (owner_id, created_at, id);

CREATE TABLE templates (
    id          TEXT   NOT NULL,
    owner_id    TEXT   NOT NULL REFERENCES accounts (id),
    name        TEXT   NOT NULL,
    description TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    defaults    BYTEA  NOT NULL, -- JSON
    CONSTRAINT templates_id PRIMARY KEY (id)
);
CREATE UNIQUE INDEX templates_owner_id_name ON templates (owner_id, name);
CREATE INDEX templates_newest ON templates (owner_id, created_at, id);

-- The lease columns (guest_ip to uid) are NULL while the VM has no lease. The
-- largest column comes last, so that lists need not read past it.
CREATE TABLE vms (
    id             TEXT    NOT NULL,
    owner_id       TEXT    NOT NULL REFERENCES accounts (id),
    name           TEXT    NOT NULL, -- '' when it has none
    image_id       TEXT    NOT NULL REFERENCES images (id),
    template_id    TEXT    NOT NULL, -- '' when it had none; the template may be gone
    boot           TEXT    NOT NULL, -- JSON
    intent         TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    state_reason   TEXT    NOT NULL,
    conditions     TEXT    NOT NULL, -- JSON
    vcpus          BIGINT  NOT NULL,
    mem_mib        BIGINT  NOT NULL,
    disk_mib       BIGINT  NOT NULL,
    boot_args      TEXT    NOT NULL,
    enable_network BOOLEAN NOT NULL,
    guest_ip       BIGINT,           -- the IPv4 address as a number
    guest_mac      TEXT,
    tap_number     BIGINT,           -- what follows the prefix in tap_name
    tap_name       TEXT,
    ssh_port       BIGINT,
    uid            BIGINT,
    last_guest_ip  BIGINT,           -- held before the lease was released
    last_guest_mac TEXT,
    ssh_keys       TEXT    NOT NULL, -- JSON
    driver         TEXT    NOT NULL,
    machine        TEXT,             -- JSON
    provisioned    BOOLEAN NOT NULL,
    created_at     BIGINT  NOT NULL,
    updated_at     BIGINT  NOT NULL,
    started_at     BIGINT,
    revision       BIGINT  NOT NULL, -- goes up with every change of the row
    user_data      BYTEA   NOT NULL,
    CONSTRAINT vms_id PRIMARY KEY (id)
);
CREATE UNIQUE INDEX vms_owner_id_name ON vms (owner_id, name) WHERE name <> '';
CREATE UNIQUE INDEX vms_guest_ip ON vms (guest_ip);
CREATE UNIQUE INDEX vms_guest_mac ON vms (guest_mac);
CREATE UNIQUE INDEX vms_tap_number ON vms (tap_number);
CREATE UNIQUE INDEX vms_tap_name ON vms (tap_name);
CREATE UNIQUE INDEX vms_ssh_port ON vms (ssh_port);
CREATE UNIQUE INDEX vms_uid ON vms (uid);
CREATE INDEX vms_newest ON vms (owner_id, created_at, id, revision);
CREATE INDEX vms_capacity ON vms (state, mem_mib, disk_mib, id);
CREATE INDEX vms_image_id ON vms (image_id);

CREATE TABLE vm_labels (
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    label TEXT NOT NULL,
    value TEXT NOT NULL,
    CONSTRAINT vm_labels_vm_id_label PRIMARY KEY (vm_id, label)
);
CREATE INDEX vm_labels_label_value ON vm_labels (label, value);

CREATE TABLE idempotency_keys (
    owner_id   TEXT   NOT NULL REFERENCES accounts (id),
    key        TEXT   NOT NULL,
    hash       TEXT   NOT NULL,
    vm_id      TEXT   NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    CONSTRAINT idempotency_keys_owner_id_key PRIMARY KEY (owner_id, key)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);
CREATE INDEX idempotency_keys_vm_id ON idempotency_keys (vm_id);

-- One row. A transaction that reserves addresses or capacity updates it first and
-- thereby waits for all others that do; so "the smallest free" and "the sum of
-- all" stay true until the commit, on PostgreSQL as on SQLite.
CREATE TABLE reservations (
    id   BIGINT NOT NULL,
    turn BIGINT NOT NULL,
    CONSTRAINT reservations_id PRIMARY KEY (id)
);
INSERT INTO reservations (id, turn) VALUES (1, 0);

-- +goose Down
DROP TABLE reservations;
DROP TABLE idempotency_keys;
DROP TABLE vm_labels;
DROP TABLE vms;
DROP TABLE templates;
DROP TABLE images;
DROP TABLE api_keys;
DROP TABLE accounts;
