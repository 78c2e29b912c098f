-- +goose Up

-- The host ports that lead to published ports of the guest, as a JSON object by the
-- guest's port; '' for none. In numbers they are of the kind ssh_port, as SSH ports
-- are: a port of the host leads to one port of one VM.
ALTER TABLE vms ADD COLUMN ports TEXT NOT NULL DEFAULT '';

-- +goose Down
DELETE FROM numbers WHERE kind = 'ssh_port' AND released_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM vms v WHERE v.host_id = numbers.host_id AND v.ssh_port = numbers.number);
UPDATE numbers SET next_free = CASE WHEN EXISTS (SELECT 1 FROM numbers n
    WHERE n.host_id = numbers.host_id AND n.kind = numbers.kind AND n.number = numbers.number + 1) THEN NULL ELSE number + 1 END
    WHERE kind = 'ssh_port';
ALTER TABLE vms DROP COLUMN ports;
