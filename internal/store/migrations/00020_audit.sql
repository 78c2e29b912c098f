-- +goose Up

-- Who did what. Rows refer to users, keys and objects that may be gone. seq is the time in
-- microseconds, or the next free number after it.
CREATE TABLE audit (
    seq         BIGINT NOT NULL,
    happened_at BIGINT NOT NULL,
    owner_id    TEXT   NOT NULL, -- user that may read the row; '' for admins only
    user_id     TEXT   NOT NULL,
    user_name   TEXT   NOT NULL,
    key_id      TEXT   NOT NULL,
    key_name    TEXT   NOT NULL,
    address     TEXT   NOT NULL,
    operation   TEXT   NOT NULL,
    noun        TEXT   NOT NULL,
    object_id   TEXT   NOT NULL,
    outcome     TEXT   NOT NULL,
    code        TEXT   NOT NULL,
    request_id  TEXT   NOT NULL,
    took_us     BIGINT NOT NULL,
    bytes       BIGINT NOT NULL,
    number      BIGINT NOT NULL, -- of what the row stands for
    CONSTRAINT audit_seq PRIMARY KEY (seq)
);
CREATE INDEX audit_owner ON audit (owner_id, seq);
CREATE INDEX audit_object ON audit (object_id, seq);

-- +goose Down
DROP TABLE audit;
