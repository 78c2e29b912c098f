-- +goose Up

-- VMs and snapshots have the host that they are on; hatchd sets it in existing
-- rows. Addresses, ports and user ids are unique per host.
ALTER TABLE vms ADD COLUMN host_id TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN host_id TEXT NOT NULL DEFAULT '';

DROP INDEX vms_guest_ip;
DROP INDEX vms_guest_mac;
DROP INDEX vms_tap_number;
DROP INDEX vms_tap_name;
DROP INDEX vms_ssh_port;
DROP INDEX vms_uid;
DROP INDEX vms_capacity;
CREATE UNIQUE INDEX vms_host_id_guest_ip ON vms (host_id, guest_ip);
CREATE UNIQUE INDEX vms_host_id_guest_mac ON vms (host_id, guest_mac);
CREATE UNIQUE INDEX vms_host_id_tap_number ON vms (host_id, tap_number);
CREATE UNIQUE INDEX vms_host_id_tap_name ON vms (host_id, tap_name);
CREATE UNIQUE INDEX vms_host_id_ssh_port ON vms (host_id, ssh_port);
CREATE UNIQUE INDEX vms_host_id_uid ON vms (host_id, uid);
CREATE INDEX vms_capacity ON vms (host_id, state, mem_mib, disk_mib, id);

-- +goose Down
DROP INDEX vms_host_id_guest_ip;
DROP INDEX vms_host_id_guest_mac;
DROP INDEX vms_host_id_tap_number;
DROP INDEX vms_host_id_tap_name;
DROP INDEX vms_host_id_ssh_port;
DROP INDEX vms_host_id_uid;
DROP INDEX vms_capacity;
CREATE UNIQUE INDEX vms_guest_ip ON vms (guest_ip);
CREATE UNIQUE INDEX vms_guest_mac ON vms (guest_mac);
CREATE UNIQUE INDEX vms_tap_number ON vms (tap_number);
CREATE UNIQUE INDEX vms_tap_name ON vms (tap_name);
CREATE UNIQUE INDEX vms_ssh_port ON vms (ssh_port);
CREATE UNIQUE INDEX vms_uid ON vms (uid);
CREATE INDEX vms_capacity ON vms (state, mem_mib, disk_mib, id);

ALTER TABLE snapshots DROP COLUMN host_id;
ALTER TABLE vms DROP COLUMN host_id;
