-- +goose Up

-- The encrypted key of the SSH certificate authority. There is one row.
CREATE TABLE ssh_authority (
    id   BIGINT NOT NULL,
    seed BYTEA  NOT NULL,
    CONSTRAINT ssh_authority_id PRIMARY KEY (id)
);

-- +goose Down
DROP TABLE ssh_authority;
