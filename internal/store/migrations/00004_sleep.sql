-- +goose Up

-- Where the memory of each sleeping VM is stored. A table of its own, because a
-- column added to vms would come after the largest one.
CREATE TABLE vm_sleeps (
    vm_id    TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    slept_at BIGINT  NOT NULL,
    durable  BOOLEAN NOT NULL, -- on disk; else in the host's RAM
    bytes    BIGINT  NOT NULL, -- what it takes there
    CONSTRAINT vm_sleeps_vm_id PRIMARY KEY (vm_id)
);

-- +goose Down
DROP TABLE vm_sleeps;
