-- +goose Up

-- Host names that lead to ports of VMs. A route has a subdomain of the proxy's domain
-- or a domain of its owner's own, which is served, and unique, once it is verified.
CREATE TABLE routes (
    id          TEXT   NOT NULL,
    owner_id    TEXT   NOT NULL REFERENCES accounts (id), -- of the VM
    vm_id       TEXT   NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    subdomain   TEXT,            -- NULL with a domain
    domain      TEXT,            -- NULL with a subdomain
    proof       TEXT   NOT NULL, -- of the domain, for a TXT record; '' without a domain
    verified_at BIGINT,          -- NULL while the domain is not verified
    spec        TEXT   NOT NULL, -- JSON
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    CONSTRAINT routes_id PRIMARY KEY (id),
    CONSTRAINT routes_subdomain UNIQUE (subdomain)
);
CREATE UNIQUE INDEX routes_domain ON routes (domain) WHERE verified_at IS NOT NULL;
CREATE INDEX routes_vm_id ON routes (vm_id);
CREATE INDEX routes_newest ON routes (owner_id, created_at, id);

-- VMs are found by name alone, too: as part of a host name.
CREATE INDEX vms_name ON vms (name) WHERE name <> '';

-- The number that signed links of a VM have; a higher one ends those before. VMs whose
-- links were never ended have no row, and the number 0.
CREATE TABLE link_generations (
    vm_id      TEXT   NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    generation BIGINT NOT NULL,
    CONSTRAINT link_generations_vm_id PRIMARY KEY (vm_id)
);

-- What signs links. There is one row.
CREATE TABLE link_secret (
    id     BIGINT NOT NULL,
    secret BYTEA  NOT NULL,
    CONSTRAINT link_secret_id PRIMARY KEY (id)
);

-- +goose Down
DROP TABLE link_secret;
DROP TABLE link_generations;
DROP INDEX vms_name;
DROP TABLE routes;
