-- +goose Up

-- Addresses and host ports that VMs have given up, to be left out of use for some time:
-- packets and clients of the former VM must not reach the next one. kind is the
-- column of vms, number its value.
CREATE TABLE released (
    host_id     TEXT   NOT NULL,
    kind        TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    owner_id    TEXT   NOT NULL, -- of the former VM
    released_at BIGINT NOT NULL,
    CONSTRAINT released_host_id_kind_number PRIMARY KEY (host_id, kind, number)
);
CREATE INDEX released_host_id_released_at ON released (host_id, released_at);

-- +goose Down
DROP TABLE released;
