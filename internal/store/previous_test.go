package store

import (
	"compress/gzip"
	"context"
	"database/sql"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// unpackPrevious fills an empty database with that of the version before users.
func unpackPrevious(t *testing.T, backend, dsn string) {
	t.Helper()
	dir := filepath.Join("testdata", "before-users")
	if backend == "postgres" {
		text, err := os.ReadFile(filepath.Join(dir, "postgres.sql"))
		noError(t, err)
		db, err := sql.Open("pgx", dsn)
		noError(t, err)
		defer func() { noError(t, db.Close()) }()
		_, err = db.ExecContext(t.Context(), string(text))
		noError(t, err)
		return
	}
	packed, err := os.Open(filepath.Join(dir, "hatch.db.gz"))
	noError(t, err)
	defer func() { noError(t, packed.Close()) }()
	plain, err := gzip.NewReader(packed)
	noError(t, err)
	text, err := io.ReadAll(plain)
	noError(t, err)
	noError(t, os.WriteFile(dsn, text, 0o600))
}

// The admin of the version before users keeps everything, and its keys work.
func TestThePreviousVersionsAdminKeepsEverything(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			dsn := b.dsn(t)
			unpackPrevious(t, b.name, dsn)
			s, err := Open(context.Background(), dsn, testHost)
			noError(t, err)
			t.Cleanup(func() { noError(t, s.Close()) })
			keys := access.New(s, slog.New(slog.DiscardHandler))
			t.Cleanup(func() { noError(t, keys.Close()) })
			secret, err := os.ReadFile(filepath.Join("testdata", "before-users", b.name+".key"))
			noError(t, err)
			p, err := keys.Authenticate(t.Context(), strings.TrimSpace(string(secret)), netip.MustParseAddr("192.0.2.1"))
			noError(t, err)
			if p.OwnerID != access.AdminID || p.Role != access.RoleAdmin || !p.Rights.Include(access.Admin) || !p.ExpiresAt.IsZero() {
				t.Errorf("the old key is %+v", p)
			}
			seesThePreviousObjects(t, s, p.Scope())
			img, err := s.Image(t.Context(), p.Scope(), image.DefaultID)
			noError(t, err)
			if img.OwnerID != access.SystemID || img.Sharing.Visibility != access.Public {
				t.Errorf("the default image is %+v", img)
			}
			other, err := keys.CreateUser(t.Context(), "alice", access.RoleMember)
			noError(t, err)
			if vms, _, err := s.VMs(t.Context(), access.Owner(other.ID), vm.Filter{}); err != nil || len(vms) > 0 {
				t.Errorf("a new user sees %v, %v", vms, err)
			}
		})
	}
}

func seesThePreviousObjects(t *testing.T, s *Store, scope access.Scope) {
	t.Helper()
	ctx := t.Context()
	vms, _, err := s.VMs(ctx, scope, vm.Filter{})
	noError(t, err)
	snaps, err := s.Snapshots(ctx, scope, snapshot.Filter{})
	noError(t, err)
	routes, err := s.Routes(ctx, scope, "")
	noError(t, err)
	templates, err := s.Templates(ctx, scope)
	noError(t, err)
	hooks, err := s.Webhooks(ctx, scope)
	noError(t, err)
	keys, err := s.Keys(ctx, scope)
	noError(t, err)
	equal(t, []int{len(vms), len(snaps), len(routes), len(templates), len(hooks), len(keys)}, []int{2, 1, 1, 1, 1, 2})
	for _, v := range vms {
		equal(t, v.ImageID, image.DefaultID)
	}
}
