-- +goose Up

-- The object that a request about another one has made, such as a snapshot of a VM.
ALTER TABLE audit ADD COLUMN made_id TEXT NOT NULL DEFAULT '';
CREATE INDEX audit_made ON audit (made_id, seq);

-- +goose Down
DROP INDEX audit_made;
ALTER TABLE audit DROP COLUMN made_id;
