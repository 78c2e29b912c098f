package daemon

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/server/portgate"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Directories in the data directory that hosts share with the daemon.
const (
	VMsDir      = "vms"       // run directories of VMs
	MemoryDir   = "memory"    // guests' memory
	SnapshotDir = "snapshots" // snapshots' files
)

// ConsoleLogBytes is the size of one of a console log's two files.
const ConsoleLogBytes = 1 << 20

// Host is what the daemon uses of the computer that it runs on. All fields are
// required but those that say what nil means.
type Host struct {
	Drivers   []vmm.Driver // the default driver first
	Network   network.Attacher
	Forwards  network.Forwarder
	Files     vm.Files
	Memories  vm.Memories
	Snapshots snapshot.Files
	Guests    vm.Guests
	Consoles  vm.Consoles
	Inspector image.Inspector
	Initramfs image.Initramfs
	Builder   image.Builder

	OwnUser  bool                // VMMs run under their VM's own user id
	PortBusy func(port int) bool // another process listens on the port; nil: none is busy

	// For /healthz: whether the network is set up, the VMMs' programs are installed, and
	// there is RAM for guests' memory and room for VMMs' processes.
	CheckNetwork, CheckVMM, CheckMemory, CheckTasks func() error

	// DefaultImage makes img_default; nil: the configuration names its files.
	DefaultImage func(owner string) (image.Image, error)

	// CloseForwards closes all ports that lead to guests, so that no connection wakes a VM.
	CloseForwards func()

	// ShuttingDown reports whether the computer itself is shutting down; nil: it
	// never does. It is asked when the daemon is told to end.
	ShuttingDown func(context.Context) (bool, error)
}

// HostEnv is what a host is opened with.
type HostEnv struct {
	Config config.Config
	Log    *slog.Logger
	Out    io.Writer // stdout

	// LiveLinks are the links of VMs that an earlier daemon has left running.
	LiveLinks []network.Link

	// WakeOnDemand wakes a VM one of whose ports gets a connection.
	WakeOnDemand func(ctx context.Context, a portgate.Arrival) error
	// Dial connects a client to a VM, which counts as used until the connection is
	// closed.
	Dial func(ctx context.Context, a portgate.Arrival) (vm.PortConn, error)

	// Ended is told of each connection to a port of a VM that has ended.
	Ended func(portgate.Session)

	// SSHAuthority is the public key of the certificates with which users log in to guests.
	SSHAuthority string

	// OnClose registers what ends a part of the host; the last registered runs first.
	OnClose func(func() error)
}

// Path returns the path of a name in the data directory.
func (e HostEnv) Path(name string) string { return filepath.Join(e.Config.DataDir, name) }

// PrivateDirs returns the directories of the data directory whose files are never used
// as images.
func (e HostEnv) PrivateDirs() []string {
	return []string{e.Path(VMsDir), e.Path(MemoryDir), e.Path(SnapshotDir), e.Path("lost")}
}

// OpenHost makes a host's parts. What it has registered with OnClose is closed
// by the caller, on error too.
type OpenHost func(ctx context.Context, env HostEnv) (*Host, error)
