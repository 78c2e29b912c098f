package migrations

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
)

// Secrets encrypts values, and has the key that does, as its row is.
type Secrets interface {
	Seal(place string, value []byte) []byte
	Open(place string, sealed []byte) ([]byte, error)
	Row() (id, recipient string, wrapped []byte)
}

const secretKeys21 = `CREATE TABLE secret_keys (
    id         TEXT    NOT NULL,
    recipient  TEXT    NOT NULL, -- public key of the identity, in the key file, that decrypts it
    wrapped    BYTEA   NOT NULL, -- the key, encrypted with age
    created_at BIGINT  NOT NULL,
    scrubbed   BOOLEAN NOT NULL, -- what values were before this key encrypted them is gone from free pages, too
    CONSTRAINT secret_keys_id PRIMARY KEY (id)
)`

// change21 returns the new value of a column, or false if it stays.
type change21 func(id string, value []byte) ([]byte, bool, error)

// secrets encrypts the secrets in all rows, and stores the key, which the key file
// decrypts. The places are those of internal/store.
func (s steps) secrets(ctx context.Context, tx *sql.Tx) error {
	if err := s.run(ctx, tx, secretKeys21); err != nil {
		return err
	}
	id, recipient, wrapped := s.keys.Row()
	if err := s.exec(ctx, tx, "INSERT INTO secret_keys (id, recipient, wrapped, created_at, scrubbed) VALUES (?, ?, ?, ?, FALSE)",
		id, recipient, wrapped, time.Now().UnixMicro()); err != nil {
		return err
	}
	return s.change21(ctx, tx, func(place string, value []byte) ([]byte, error) { return s.keys.Seal(place, value), nil }, true)
}

func (s steps) dropSecrets(ctx context.Context, tx *sql.Tx) error {
	if err := s.change21(ctx, tx, s.keys.Open, false); err != nil {
		return err
	}
	return s.run(ctx, tx, "DROP TABLE secret_keys")
}

// change21 applies do to every secret.
func (s steps) change21(ctx context.Context, tx *sql.Tx, do func(place string, value []byte) ([]byte, error), up bool) error {
	whole := func(prefix string) change21 {
		return func(id string, value []byte) ([]byte, bool, error) {
			value, err := do(prefix+id, value)
			return value, true, err
		}
	}
	template := templateUp21
	text := encoded21
	if !up {
		template, text = templateDown21, decoded21
	}
	for _, c := range []struct {
		table, column string
		text          bool
		change        change21
	}{
		{"vms", "user_data", false, whole("vms/user_data/")},
		{"snapshots", "user_data", false, whole("snapshots/user_data/")},
		{"link_secret", "secret", false, whole("link_secret/secret/")},
		{"webhooks", "secret", true, text(whole("webhooks/secret/"))},
		{"routes", "spec", true, func(id string, value []byte) ([]byte, bool, error) {
			return edited21(value, func(spec map[string]json.RawMessage) (bool, error) {
				return hash21(spec, func(hash []byte) ([]byte, error) { return do("routes/password/"+id, hash) })
			})
		}},
		{"templates", "defaults", false, func(id string, value []byte) ([]byte, bool, error) {
			return edited21(value, func(t map[string]json.RawMessage) (bool, error) {
				data, err := template(t, func(v []byte) ([]byte, error) { return do("templates/user_data/"+id, v) })
				if err != nil {
					return false, err
				}
				routes, err := routes21(t, func(v []byte) ([]byte, error) { return do("templates/routes/"+id, v) })
				return data || routes, err
			})
		}},
	} {
		if err := s.column21(ctx, tx, c.table, c.column, c.text, c.change); err != nil {
			return fmt.Errorf("cannot change %s of %s: %w", c.column, c.table, err)
		}
	}
	return nil
}

// column21 goes through the rows of a table one by one: each may hold a mebibyte.
func (s steps) column21(ctx context.Context, tx *sql.Tx, table, column string, text bool, change change21) error {
	key := "id"
	if table == "link_secret" { // whose id is a number; a cast is looked for without an index
		key = "CAST(id AS TEXT)"
	}
	var ids []string
	err := s.each(ctx, tx, "SELECT "+key+" FROM "+table, func(scan func(...any) error) error {
		var id string
		err := scan(&id)
		ids = append(ids, id)
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		var value []byte
		if err := tx.QueryRowContext(ctx, s.rebind("SELECT "+column+" FROM "+table+" WHERE "+key+" = ?"), id).Scan(&value); err != nil {
			return err
		}
		value, changed, err := change(id, value)
		if err == nil && changed {
			var stored any = value
			if text {
				stored = string(value)
			}
			err = s.exec(ctx, tx, "UPDATE "+table+" SET "+column+" = ? WHERE "+key+" = ?", stored, id)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	return nil
}

// encoded21 encodes what change returns, for a column of text.
func encoded21(change change21) change21 {
	return func(id string, value []byte) ([]byte, bool, error) {
		value, changed, err := change(id, value)
		return base64.StdEncoding.AppendEncode(nil, value), changed, err
	}
}

func decoded21(change change21) change21 {
	return func(id string, value []byte) ([]byte, bool, error) {
		value, err := base64.StdEncoding.AppendDecode(nil, value)
		if err != nil {
			return nil, false, err
		}
		return change(id, value)
	}
}

// edited21 changes a JSON object and leaves its other keys as they are.
func edited21(text []byte, edit func(map[string]json.RawMessage) (bool, error)) ([]byte, bool, error) {
	object := map[string]json.RawMessage{}
	if len(text) == 0 {
		return nil, false, nil
	}
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, false, err
	}
	changed, err := edit(object)
	if err != nil || !changed {
		return nil, false, err
	}
	text, err = json.Marshal(object)
	return text, true, err
}

// hash21 changes auth.hash of a route's spec.
func hash21(spec map[string]json.RawMessage, do func([]byte) ([]byte, error)) (bool, error) {
	auth, changed, err := edited21(spec["auth"], func(auth map[string]json.RawMessage) (bool, error) {
		return bytes21(auth, "hash", "hash", do)
	})
	if changed {
		spec["auth"] = auth
	}
	return changed, err
}

// bytes21 changes bytes, which JSON has in base64, and their key.
func bytes21(object map[string]json.RawMessage, from, to string, do func([]byte) ([]byte, error)) (changed bool, err error) {
	if object[from] == nil {
		return false, nil
	}
	var value []byte
	if err := json.Unmarshal(object[from], &value); err != nil {
		return false, err
	}
	if value, err = do(value); err != nil {
		return false, err
	}
	delete(object, from)
	object[to], err = json.Marshal(value)
	return true, err
}

func routes21(t map[string]json.RawMessage, do func([]byte) ([]byte, error)) (changed bool, err error) {
	if t["routes"] == nil {
		return false, nil
	}
	var routes []map[string]json.RawMessage
	if err := json.Unmarshal(t["routes"], &routes); err != nil {
		return false, err
	}
	for _, spec := range routes {
		one, err := hash21(spec, do)
		if err != nil {
			return false, err
		}
		changed = changed || one
	}
	if changed {
		t["routes"], err = json.Marshal(routes)
	}
	return changed, err
}

// templateUp21 replaces user_data, or user_data_bytes, by sealed_user_data.
func templateUp21(t map[string]json.RawMessage, seal func([]byte) ([]byte, error)) (bool, error) {
	if t["user_data_bytes"] == nil && t["user_data"] != nil {
		var text *string
		if err := json.Unmarshal(t["user_data"], &text); err != nil || text == nil {
			return false, err
		}
		encoded, err := json.Marshal([]byte(*text))
		if err != nil {
			return false, err
		}
		t["user_data_bytes"] = encoded
	}
	delete(t, "user_data")
	return bytes21(t, "user_data_bytes", "sealed_user_data", seal)
}

func templateDown21(t map[string]json.RawMessage, open func([]byte) ([]byte, error)) (bool, error) {
	return bytes21(t, "sealed_user_data", "user_data_bytes", open)
}
