package store

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/secret"
)

// sealedColumn is a column that has a secret, or JSON with secrets.
type sealedColumn struct {
	table, column string
	text          bool // the column is of text
	reseal        func(keys *secret.Keyring, id string, stored []byte) (again []byte, changed bool, err error)
}

// sealedColumns are all of them.
var sealedColumns = []sealedColumn{
	{"vms", "user_data", false, resealAt(placeOfVM)},
	{"snapshots", "user_data", false, resealAt(placeOfSnapshot)},
	{"templates", "defaults", false, resealTemplate},
	{"webhooks", "secret", true, resealWebhook},
	{"routes", "spec", true, resealRoute},
	{"link_secret", "secret", false, resealAt(func(string) string { return placeOfLinks() })},
	{"ssh_authority", "seed", false, resealAt(func(string) string { return placeOfSSHAuthority() })},
}

// id is the primary key as text: that of a table with one row is a number.
func (c sealedColumn) id() string {
	if c.table == "link_secret" || c.table == "ssh_authority" {
		return "CAST(id AS TEXT)"
	}
	return "id"
}

func (c sealedColumn) query() string {
	return "SELECT " + c.id() + " AS id, " + c.column + " AS value FROM " + c.table + " WHERE " + c.id() + " > ? ORDER BY " + c.id() + " LIMIT ?"
}

func (c sealedColumn) update() string {
	return "UPDATE " + c.table + " SET " + c.column + " = ? WHERE " + c.id() + " = ?"
}

// stored returns a value in the type of the column.
func (c sealedColumn) stored(value []byte) any {
	if c.text {
		return string(value)
	}
	return value
}

func resealAt(place func(id string) string) func(*secret.Keyring, string, []byte) ([]byte, bool, error) {
	return func(keys *secret.Keyring, id string, stored []byte) ([]byte, bool, error) {
		return keys.Reseal(place(id), stored)
	}
}

func resealWebhook(keys *secret.Keyring, id string, stored []byte) ([]byte, bool, error) {
	bytes, err := base64.StdEncoding.AppendDecode(nil, stored)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", placeOfWebhook(id), secret.ErrNotOpened)
	}
	again, changed, err := keys.Reseal(placeOfWebhook(id), bytes)
	return base64.StdEncoding.AppendEncode(nil, again), changed, err
}

func resealRoute(keys *secret.Keyring, id string, stored []byte) (again []byte, changed bool, err error) {
	var spec route.Spec
	if err := json.Unmarshal(stored, &spec); err != nil {
		return nil, false, err
	}
	if spec.Auth.Hash, changed, err = keys.Reseal(placeOfRoute(id), spec.Auth.Hash); err != nil || !changed {
		return nil, false, err
	}
	again, err = json.Marshal(spec)
	return again, true, err
}

func resealTemplate(keys *secret.Keyring, id string, stored []byte) (again []byte, changed bool, err error) {
	var t templateDefaults
	if err := json.Unmarshal(stored, &t); err != nil {
		return nil, false, err
	}
	if t.SealedUserData != nil {
		if *t.SealedUserData, changed, err = keys.Reseal(placeOfTemplate(id), *t.SealedUserData); err != nil {
			return nil, false, err
		}
	}
	for i := range t.Routes {
		hash := &t.Routes[i].Auth.Hash
		was := changed
		if *hash, changed, err = keys.Reseal(placeOfTemplateRoutes(id), *hash); err != nil {
			return nil, false, err
		}
		changed = changed || was
	}
	if !changed {
		return nil, false, nil
	}
	again, err = json.Marshal(t)
	return again, true, err
}
