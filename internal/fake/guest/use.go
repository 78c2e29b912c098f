package guest

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/process"
)

var (
	_ file.Guests    = (*VM[file.Guest, file.Mode])(nil)
	_ process.Guests = (*VM[process.Guest, process.Mode])(nil)
)

// Uses counts the uses of a guest.
type Uses struct {
	opened, open atomic.Int32
	twice        atomic.Bool // a use was released twice
}

// Begin begins a use, which lasts until release is called.
func (u *Uses) Begin() (release func()) {
	u.opened.Add(1)
	u.open.Add(1)
	var released atomic.Bool
	return func() {
		if released.Swap(true) {
			u.twice.Store(true)
		}
		u.open.Add(-1)
	}
}

// Opened returns how many uses have begun.
func (u *Uses) Opened() int { return int(u.opened.Load()) }

// InUse returns how many uses were not released yet.
func (u *Uses) InUse() int { return int(u.open.Load()) }

// Check returns an error unless each use was released once.
func (u *Uses) Check() error {
	if u.InUse() != 0 || u.twice.Load() {
		return fmt.Errorf("of %d uses of the guest %d were not released; one was released twice: %v", u.Opened(), u.InUse(), u.twice.Load())
	}
	return nil
}

// VM is the one VM of a host, as the services file and process open its guest.
type VM[Guest any, Mode ~int] struct {
	ID, OwnerID string
	Guest       Guest
	Asleep      atomic.Bool // until it is opened in the mode Wake
	Uses
}

// Open implements file.Guests and process.Guests.
func (v *VM[Guest, Mode]) Open(_ context.Context, scope access.Scope, id string, mode Mode) (g Guest, release func(), err error) {
	if !scope.Sees(v.OwnerID) || id != v.ID {
		return g, nil, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	}
	if mode == Mode(file.Wake) { // of both services
		v.Asleep.Store(false)
	}
	if v.Asleep.Load() {
		return g, nil, errs.New(errs.Conflict, "vm_not_running", "cannot look inside VM %s: it is snapshotted", id).WithHint("wake it first")
	}
	return v.Guest, v.Begin(), nil
}
