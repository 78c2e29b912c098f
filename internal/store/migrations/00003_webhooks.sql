-- +goose Up
CREATE TABLE webhooks (
    id              TEXT    NOT NULL,
    owner_id        TEXT    NOT NULL REFERENCES accounts (id),
    url             TEXT    NOT NULL,
    events          TEXT    NOT NULL, -- JSON
    secret          TEXT    NOT NULL, -- as it is: it is needed to sign
    description     TEXT    NOT NULL,
    enabled         BOOLEAN NOT NULL,
    disabled_reason TEXT    NOT NULL,
    cursor_seq      BIGINT  NOT NULL, -- of events: up to here there are deliveries
    created_at      BIGINT  NOT NULL,
    updated_at      BIGINT  NOT NULL,
    CONSTRAINT webhooks_id PRIMARY KEY (id)
);
CREATE INDEX webhooks_newest ON webhooks (owner_id, created_at, id);

CREATE TABLE webhook_deliveries (
    id          TEXT   NOT NULL,
    webhook_id  TEXT   NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_id    TEXT   NOT NULL,
    event_seq   BIGINT NOT NULL, -- 0 when the event is in no log
    event_type  TEXT   NOT NULL,
    body        TEXT   NOT NULL, -- JSON
    state       TEXT   NOT NULL,
    attempts    BIGINT NOT NULL,
    status_code BIGINT NOT NULL, -- 0 when there was no answer
    error       TEXT   NOT NULL,
    next_try_at BIGINT,
    tried_at    BIGINT,
    created_at  BIGINT NOT NULL,
    CONSTRAINT webhook_deliveries_id PRIMARY KEY (id)
);
CREATE UNIQUE INDEX webhook_deliveries_webhook_id_event_id ON webhook_deliveries (webhook_id, event_id);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, state, next_try_at, event_seq);
CREATE INDEX webhook_deliveries_newest ON webhook_deliveries (webhook_id, created_at, id);

-- +goose Down
DROP TABLE webhook_deliveries;
DROP TABLE webhooks;
