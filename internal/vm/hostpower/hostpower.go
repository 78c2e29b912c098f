// Package hostpower takes VMs down with their host, and brings them back when the
// host has started again.
//
// It does not find out whether the host shuts down; its caller does. What a VM
// comes back to is in its row ([vm.Autostart]); internal/vm/recovery sets it for VMs
// that the host's end has cut off. Start at [Service.Down] and [Service.Up].
package hostpower

import (
	"log/slog"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vm/operation"
	"github.com/hatchvm/hatch/internal/vm/power"
	"github.com/hatchvm/hatch/internal/vm/transition"
)

// Policy is what happens to running VMs when the host shuts down.
type Policy string

// The policies.
const (
	Sleep Policy = "sleep" // and stop the VMs that cannot sleep
	Stop  Policy = "stop"
)

// Settings are the operator's choices.
type Settings struct {
	Policy    Policy
	Timeout   time.Duration // for all VMs together, before those left are killed
	Autostart bool          // bring VMs back
}

// Store is what the service needs of the database.
type Store interface {
	vm.Reader
	vm.Lister
}

// Config is what the service needs. All fields are required.
type Config struct {
	Store  Store
	Runner *operation.Runner
	Engine *transition.Engine
	Live   *live.Registry
	Power  *power.Service
	Settings
	Log *slog.Logger
}

// Service takes VMs down with the host, and brings them back.
type Service struct{ Config }

// New returns a service.
func New(cfg Config) *Service { return &Service{cfg} }
