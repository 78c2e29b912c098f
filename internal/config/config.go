// Package config reads what the operator decided: flags, environment and a
// file, in this order of precedence, over built-in defaults.
//
// One table (settings.go) says everything about every setting, and drives
// parsing, `hatchd config`, the sample file's test and the reference page.
// Only the daemon imports this package; other packages are handed values.
// Start at [Load] and [Config].
package config

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/network"
)

// Config is what is in force. [Load] fills it; every value has been checked.
type Config struct {
	HTTPAddr    string // host:port; an empty host means every interface
	DataDir     string // absolute
	DatabaseURL string // postgres://…, or an absolute path of an SQLite file
	APIKey      string // "" when hatchd is to make one up; a secret

	DefaultKernelPath string // absolute; "" when there is none
	DefaultRootfsPath string // absolute; set exactly when DefaultKernelPath is
	DefaultVCPU       int    // ≥ 1
	DefaultMemMiB     int    // ≥ 64
	DefaultDiskMiB    int    // ≥ 64
	DefaultBootArgs   string

	Network            network.Network
	EgressAllowPrivate []netip.Prefix // private ranges that guests may reach all the same
	SSHPortMin         int
	SSHPortMax         int            // ≥ SSHPortMin
	SSHAllowed         []netip.Prefix // who may connect to VMs' SSH ports; empty: nobody

	VMM            string // auto, qemu, firecracker or fake
	QEMUBin        string // a path, or a name to look up in PATH
	FirecrackerBin string // likewise
	JailerBin      string // likewise; Firecracker's jailer
	AgentPath      string // absolute
	StopTimeout    time.Duration
	UIDMin         int
	UIDMax         int     // ≥ UIDMin
	MemOver        float64 // VMs' memory may add up to this many times the host's
	DiskOver       float64 // VMs' disks may add up to this many times the host's

	Warm              string        // auto, manual or off
	MaxSnapshotsPerVM int           // ≥ 1
	SnapshotMaxAge    time.Duration // of automatic ones; 0: no limit
	SnapshotDiskMiB   int64         // all snapshots together; 0: as much as the disk has

	EventsKeep  time.Duration
	EventsPerVM int
	EventsMax   int

	WebhookAllowPrivate bool

	LogLevel  slog.Level
	LogFormat string // text or json

	// Warnings are what looks wrong but is no fault, in words.
	Warnings []string

	origins map[string]origin // by setting name
}

// origin is where a value came from.
type origin struct {
	raw    string
	source Source
}

// Source tells where a value came from.
type Source string

// The sources, the strongest first.
const (
	FromFlag    Source = "flag"
	FromEnv     Source = "environment"
	FromFile    Source = "file"
	FromDefault Source = "default"
)

// databaseFile is the SQLite file in the data directory.
const databaseFile = "hatch.db"

// Value is one setting in force, as `hatchd config` prints it.
type Value struct {
	Name   string // as in the file
	Env    string
	Value  string // secrets are masked
	Source Source
}

// Values returns every setting in force, in the table's order.
func (c Config) Values() []Value {
	values := make([]Value, 0, len(settings))
	for _, s := range settings {
		o := c.origins[s.Name]
		values = append(values, Value{Name: s.Name, Env: s.Env, Value: s.shown(o.raw), Source: o.source})
	}
	return values
}

// finish fills in what follows from other settings.
func (c *Config) finish(executable string) {
	if c.DatabaseURL == "" {
		c.DatabaseURL = filepath.Join(c.DataDir, databaseFile)
	}
	if c.AgentPath == "" {
		c.AgentPath = filepath.Join(filepath.Dir(executable), "hatch-agent")
	}
}
