-- +goose Up

-- The event log. Events outlive their VMs: no row references a VM.
CREATE TABLE events (
    seq         BIGINT NOT NULL,
    id          TEXT   NOT NULL,
    owner_id    TEXT   NOT NULL REFERENCES accounts (id),
    vm_id       TEXT   NOT NULL, -- '' when it is about none
    vm_name     TEXT   NOT NULL,
    type        TEXT   NOT NULL,
    message     TEXT   NOT NULL,
    data        TEXT   NOT NULL, -- JSON
    actor_kind  TEXT   NOT NULL,
    actor_id    TEXT   NOT NULL,
    actor_name  TEXT   NOT NULL,
    request_id  TEXT   NOT NULL,
    happened_at BIGINT NOT NULL,
    CONSTRAINT events_seq PRIMARY KEY (seq)
);
CREATE INDEX events_owner_id_seq ON events (owner_id, seq);
CREATE INDEX events_vm_id_seq ON events (vm_id, seq);
CREATE INDEX events_happened_at_seq ON events (happened_at, seq);

-- One row. A transaction that appends events takes their numbers from it as its
-- last step, and thereby waits for all others that have: numbers are in the order
-- of commits, on PostgreSQL as on SQLite.
CREATE TABLE event_log (
    id       BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    CONSTRAINT event_log_id PRIMARY KEY (id)
);
INSERT INTO event_log (id, last_seq) VALUES (1, 0);

-- +goose Down
DROP TABLE event_log;
DROP TABLE events;
