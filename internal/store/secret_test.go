package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/webhook"
)

// planted is in every secret of [plant].
const planted = "planted-secret-0123456789"

// keysInMemory is a key file.
type keysInMemory struct{ ids secret.Identities }

func (k *keysInMemory) Load() (secret.Identities, error) {
	if k.ids == nil {
		return nil, fs.ErrNotExist
	}
	return k.ids, nil
}

func (k *keysInMemory) Create() (secret.Identities, error) { k.add(); return k.ids, nil }

// add puts a new identity first, as a rotation begins.
func (k *keysInMemory) add() {
	made, err := secret.NewIdentity()
	if err != nil {
		panic(err)
	}
	k.ids = append(secret.Identities{made}, k.ids...)
}

func openWith(t *testing.T, dsn string, keys KeyFile) *Store {
	t.Helper()
	s, err := OpenFor(t.Context(), dsn, Directory{HostID: testHost, Keys: keys})
	noError(t, err)
	return s
}

// plant stores a secret in each place that has one.
func plant(t *testing.T, s *Store) {
	t.Helper()
	account(t, s, "acc_a")
	v := newVM("vm_a")
	v.UserData = planted
	createVM(t, s, v)
	snap := newSnapshot("snap_a")
	snap.VM.UserData = planted
	insertSnapshots(t, s, snap)
	tpl := template.Template{ID: "tpl_a", OwnerID: "acc_a", Name: "a", CreatedAt: now(), UpdatedAt: now(), Routes: []route.Spec{basic()}}
	tpl.UserData = new(planted)
	noError(t, s.InsertTemplate(t.Context(), tpl))
	noError(t, s.InsertWebhook(t.Context(), webhook.Webhook{ID: "wh_a", OwnerID: "acc_a", Secret: planted, CreatedAt: now(), UpdatedAt: now()}, 9))
	_, err := s.InsertRoute(t.Context(), access.Everyone, route.Route{ID: "rt_a", OwnerID: "acc_a", VMID: "vm_a", Spec: basic(), CreatedAt: now(), UpdatedAt: now()}, 9)
	noError(t, err)
	_, err = s.LinkSecret(t.Context(), []byte(planted))
	noError(t, err)
	_, err = s.SSHAuthority(t.Context(), []byte(planted))
	noError(t, err)
}

func basic() route.Spec {
	return route.Spec{Subdomain: "web", Port: 80, Auth: route.Auth{Mode: route.Basic, Username: "me", Hash: []byte(planted)}}
}

// harvest reads all of them, and fails if one is another.
func harvest(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	v, err := s.VM(ctx, access.Everyone, "vm_a")
	noError(t, err)
	snap, err := s.Snapshot(ctx, access.Everyone, "snap_a")
	noError(t, err)
	tpl, err := s.Template(ctx, access.Everyone, "tpl_a")
	noError(t, err)
	hook, err := s.Webhook(ctx, access.Everyone, "wh_a")
	noError(t, err)
	r, err := s.Route(ctx, access.Everyone, "rt_a")
	noError(t, err)
	links, err := s.LinkSecret(ctx, []byte("another"))
	noError(t, err)
	authority, err := s.SSHAuthority(ctx, []byte("another"))
	noError(t, err)
	for _, got := range []string{v.UserData, snap.VM.UserData, *tpl.UserData, string(tpl.Routes[0].Auth.Hash), hook.Secret, string(r.Auth.Hash), string(links), string(authority)} {
		equal(t, got, planted)
	}
}

// onFiles fails if the files of an SQLite database have the text.
func notOnFiles(t *testing.T, dsn, text string) {
	t.Helper()
	files, err := filepath.Glob(dsn + "*")
	noError(t, err)
	for _, path := range files {
		content, err := os.ReadFile(path)
		noError(t, err)
		if bytes.Contains(content, []byte(text)) {
			t.Errorf("%s has %q", filepath.Base(path), text)
		}
	}
}

func TestSecretsAreNotInTheFile(t *testing.T) {
	dsn := sqliteDSNFor(t)
	s := open(t, dsn)
	plant(t, s)
	harvest(t, s)
	notOnFiles(t, dsn, planted)
	notOnFiles(t, dsn, "cGxhbnRlZC1zZWNyZXQt") // in base64
}

// A database with secrets as they are is encrypted by the step, also in its free pages.
func TestMigrationEncryptsSecrets(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			dsn := b.dsn(t)
			s := open(t, dsn)
			plant(t, s)
			v := newVM("vm_long") // of pages that become free
			v.Name, v.UserData = "long", strings.Repeat(planted+"\n", 4096)
			createVM(t, s, v)
			m, err := s.migrator()
			noError(t, err)
			_, err = m.DownTo(t.Context(), secretsVersion-1)
			noError(t, err)
			s.mustExec(t, "UPDATE vms SET user_data = '' WHERE id = 'vm_long'")
			var data []byte
			_, err = get(t.Context(), s.reads, &data, "SELECT user_data FROM vms WHERE id = 'vm_a'")
			noError(t, err)
			equal(t, string(data), planted)
			noError(t, s.prepare(t.Context(), Directory{HostID: testHost}))
			_, err = s.SSHAuthority(t.Context(), []byte(planted)) // the way down has dropped it
			noError(t, err)
			harvest(t, s)
			noError(t, s.Scrub(t.Context()))
			if b.name == "sqlite" {
				notOnFiles(t, dsn, planted)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			dsn, keys := b.dsn(t), &keysInMemory{}
			if b.name == "sqlite" { // one that has no key yet
				noError(t, os.Truncate(dsn, 0))
			}
			s := openWith(t, dsn, keys)
			plant(t, s)
			noError(t, s.Close())
			old := keys.ids

			keys.add()
			s = openWith(t, dsn, keys)
			equal(t, s.Rotating(), true)
			harvest(t, s) // by the old key
			interrupted, cancel := context.WithCancel(t.Context())
			_, _, err := s.resealSome(interrupted, sealedColumns[0], "")
			noError(t, err)
			cancel()
			if err := s.FinishRotation(interrupted); err == nil {
				t.Error("it finished although it was interrupted")
			}
			noError(t, s.Close())

			s = openWith(t, dsn, keys) // goes on
			harvest(t, s)
			noError(t, s.FinishRotation(t.Context()))
			harvest(t, s)
			noError(t, s.Close())

			if _, err := OpenFor(t.Context(), dsn, Directory{HostID: testHost, Keys: &keysInMemory{old}}); err == nil {
				t.Error("the old key opens the database")
			}
			keys.ids = keys.ids[:1]
			s = openWith(t, dsn, keys)
			equal(t, s.Rotating(), false)
			harvest(t, s)
			noError(t, s.Close())
		})
	}
}

func TestLostAndWrongKeysAreRefused(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			dsn, keys := b.dsn(t), &keysInMemory{}
			if b.name == "sqlite" {
				noError(t, os.Truncate(dsn, 0))
			}
			s := openWith(t, dsn, keys)
			plant(t, s)
			noError(t, s.Close())
			lost, wrong := &keysInMemory{}, &keysInMemory{}
			wrong.add()
			_, err := OpenFor(t.Context(), dsn, Directory{HostID: testHost, Keys: lost})
			if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "restore that file") || lost.ids != nil {
				t.Errorf("without the key: %v; made %v", err, lost.ids != nil)
			}
			_, err = OpenFor(t.Context(), dsn, Directory{HostID: testHost, Keys: wrong})
			if err == nil || !strings.Contains(err.Error(), "restore the right file") || strings.Contains(err.Error(), "AGE-SECRET") {
				t.Errorf("with another key: %v", err)
			}
			s = openWith(t, dsn, keys)
			harvest(t, s)
			noError(t, s.Close())
		})
	}
}

// Secrets that cannot be opened are those of their rows: others are served, and the VM
// and its routes can be deleted.
func TestDamagedSecretsStopNothingElse(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		plant(t, s)
		noError(t, s.InsertWebhook(ctx, webhook.Webhook{ID: "wh_b", OwnerID: "acc_a", Enabled: true, Secret: planted, CreatedAt: now(), UpdatedAt: now()}, 9))
		s.mustExec(t, "UPDATE webhooks SET secret = 'damaged', enabled = TRUE WHERE id = 'wh_a'")
		hooks, err := s.Subscriptions(ctx)
		noError(t, err)
		if len(hooks) != 1 || hooks[0].ID != "wh_b" {
			t.Errorf("subscriptions: %+v", hooks)
		}
		s.mustExec(t, "UPDATE vms SET user_data = (SELECT user_data FROM snapshots WHERE id = 'snap_a') WHERE id = 'vm_a'")
		s.mustExec(t, `UPDATE routes SET spec = '{"port": 80, "auth": {"mode": "basic", "username": "me", "hash": "ZGFtYWdlZA=="}}' WHERE id = 'rt_a'`)
		if _, err := s.Route(ctx, access.Everyone, "rt_a"); !errors.Is(err, secret.ErrNotOpened) { // the control
			t.Errorf("the route: %v", err)
		}
		if _, err := s.VM(ctx, access.Everyone, "vm_a"); !errors.Is(err, secret.ErrNotOpened) {
			t.Errorf("the VM: %v", err)
		}
		routes, err := s.Routes(ctx, access.Everyone, "")
		noError(t, err)
		equal(t, len(routes), 1)
		_, err = s.UpdateVM(ctx, "vm_a", vm.ToStopped("test"))
		noError(t, err)
		noError(t, s.DeleteVM(ctx, "vm_a"))
	})
}
