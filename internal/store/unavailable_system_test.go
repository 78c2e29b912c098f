//go:build system

package store

import (
	"database/sql"
	"errors"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/store/storetest/postgres"
	"github.com/hatchvm/hatch/internal/vm"
)

// A server that is away is no bug of hatchd: clients are told to try again, and once the
// server is back, all works.
func TestAServerThatIsAway(t *testing.T) {
	server, err := postgres.Start()
	if err != nil {
		t.Fatalf("cannot start PostgreSQL: %v", err)
	}
	t.Cleanup(func() { _ = server.End() })
	admin, err := sql.Open("pgx", server.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.ExecContext(t.Context(), "CREATE DATABASE away")
	if err := errors.Join(err, admin.Close()); err != nil {
		t.Fatal(err)
	}
	s := open(t, server.DSN("away"))
	createVM(t, s, newVM("vm_a"))

	calls := map[string]func() error{
		"read":   func() error { _, err := s.VM(t.Context(), access.Everyone, "vm_a"); return err },
		"list":   func() error { _, _, err := s.VMs(t.Context(), access.Everyone, vm.Filter{}); return err },
		"all":    func() error { _, err := s.AllVMs(t.Context()); return err },
		"update": func() error { _, err := s.UpdateVM(t.Context(), "vm_a", func(*vm.VM) {}); return err },
		"append": func() error {
			return s.AppendEvents(t.Context(), event.Event{OwnerID: "acc_a", Type: event.VMOperation, Message: "m"})
		},
		"key": func() error {
			if _, _, err := s.KeyByHash(t.Context(), []byte("none")); !errs.Is(err, errs.NotFound) {
				return err
			}
			return nil
		},
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		for range 20 { // first the connections that the server has ended, then none
			if err := call(); !errs.HasCode(err, errs.DatabaseUnavailable) || errs.KindOf(err) != errs.Unavailable {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s, with the server back: %v", name, err)
		}
	}
}
