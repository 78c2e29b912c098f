-- +goose Up

-- The limits that an admin has set for a user: NULL means the server's limit, -1 none.
-- The row is also what serialises the transactions that take something for the user.
CREATE TABLE quotas (
    owner_id     TEXT   NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    vms          BIGINT,
    vcpus        BIGINT,
    memory_mib   BIGINT,
    disk_mib     BIGINT,
    snapshots    BIGINT,
    snapshot_mib BIGINT,
    image_mib    BIGINT,
    routes       BIGINT,
    webhooks     BIGINT,
    CONSTRAINT quotas_owner_id PRIMARY KEY (owner_id)
);

-- What VMs of each user use of a host, added up, so that a request needs no walk along
-- all of them. hatchd counts it anew when it starts.
CREATE TABLE owned_vms (
    host_id    TEXT   NOT NULL,
    owner_id   TEXT   NOT NULL,
    vms        BIGINT NOT NULL,
    vcpus      BIGINT NOT NULL, -- of VMs with a VMM
    memory_mib BIGINT NOT NULL, -- of VMs with a VMM
    disk_mib   BIGINT NOT NULL,
    CONSTRAINT owned_vms_owner_id_host_id PRIMARY KEY (owner_id, host_id)
);
CREATE INDEX snapshots_owner_bytes ON snapshots (owner_id, bytes);

-- +goose Down
DROP INDEX snapshots_owner_bytes;
DROP TABLE owned_vms;
DROP TABLE quotas;
