-- +goose Up

-- The numbers of each kind that are in use on a host, so that the smallest free one is
-- found without a walk along the others. kind is the column of vms. An address or host
-- port that a VM has given up stays for some time: packets and clients of the former VM
-- must not reach the next one.
CREATE TABLE numbers (
    host_id     TEXT   NOT NULL,
    kind        TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    next_free   BIGINT,          -- the number after it; NULL if that is in use, too
    owner_id    TEXT   NOT NULL, -- of the VM, or of the former one
    released_at BIGINT,          -- NULL while a VM has it
    CONSTRAINT numbers_host_id_kind_number PRIMARY KEY (host_id, kind, number)
);
CREATE INDEX numbers_next_free ON numbers (host_id, kind, next_free) WHERE next_free IS NOT NULL;
CREATE INDEX numbers_released ON numbers (host_id, released_at) WHERE released_at IS NOT NULL;

-- hatchd adds the numbers of existing VMs when it starts.
INSERT INTO numbers (host_id, kind, number, owner_id, released_at)
SELECT host_id, kind, number, owner_id, released_at FROM released;
UPDATE numbers SET next_free = number + 1 WHERE NOT EXISTS (SELECT 1 FROM numbers n
    WHERE n.host_id = numbers.host_id AND n.kind = numbers.kind AND n.number = numbers.number + 1);
DROP TABLE released;

-- What VMs use of a host, added up, so that a request needs no walk along all VMs.
-- hatchd counts it anew when it starts.
CREATE TABLE capacity_used (
    host_id  TEXT    NOT NULL,
    own      BOOLEAN NOT NULL, -- by VMs of hatchd's own account
    base     TEXT    NOT NULL, -- JSON: the memory that these live VMs share; '' for none
    vms      BIGINT  NOT NULL,
    mem_mib  BIGINT  NOT NULL, -- in the host's RAM
    disk_mib BIGINT  NOT NULL,
    CONSTRAINT capacity_used_host_id_own_base PRIMARY KEY (host_id, own, base)
);

DROP INDEX vms_capacity;
CREATE INDEX vms_state ON vms (state, owner_id, created_at, id, revision);

-- +goose Down
DROP INDEX vms_state;
CREATE INDEX vms_capacity ON vms (host_id, state, mem_mib, disk_mib, id);
DROP TABLE capacity_used;
CREATE TABLE released (
    host_id     TEXT   NOT NULL,
    kind        TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    owner_id    TEXT   NOT NULL, -- of the former VM
    released_at BIGINT NOT NULL,
    CONSTRAINT released_host_id_kind_number PRIMARY KEY (host_id, kind, number)
);
CREATE INDEX released_host_id_released_at ON released (host_id, released_at);
INSERT INTO released (host_id, kind, number, owner_id, released_at)
SELECT host_id, kind, number, owner_id, released_at FROM numbers WHERE released_at IS NOT NULL;
DROP TABLE numbers;
