-- +goose Up

-- What requests with an Idempotency-Key have made, numbered from 0 for each key. Rows
-- stay after their object is deleted, so that no repeated request makes it anew.
CREATE TABLE idempotent_requests (
    owner_id   TEXT   NOT NULL REFERENCES accounts (id),
    key        TEXT   NOT NULL,
    number     BIGINT NOT NULL,
    object_id  TEXT   NOT NULL,
    hash       TEXT   NOT NULL, -- of the request
    created_at BIGINT NOT NULL,
    CONSTRAINT idempotent_requests_owner_id_key_number PRIMARY KEY (owner_id, key, number)
);
CREATE INDEX idempotent_requests_created_at ON idempotent_requests (created_at);
CREATE INDEX idempotent_requests_object_id ON idempotent_requests (object_id);

-- The hashes were of the body alone: such a request is refused if it is repeated now.
INSERT INTO idempotent_requests (owner_id, key, number, object_id, hash, created_at)
    SELECT owner_id, key, 0, vm_id, hash, created_at FROM idempotency_keys;
DROP TABLE idempotency_keys;

-- +goose Down
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
INSERT INTO idempotency_keys (owner_id, key, hash, vm_id, created_at)
    SELECT owner_id, key, hash, object_id, created_at FROM idempotent_requests
    WHERE number = 0 AND object_id IN (SELECT id FROM vms);
DROP TABLE idempotent_requests;
