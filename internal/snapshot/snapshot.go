// Package snapshot is about what was kept of a VM at one moment: its memory,
// the state of its devices and its disk.
//
// It lists, bounds and removes snapshots, and says when one that is being taken
// counts. What makes a guest stand for it, and what is made from it, is
// internal/vm's; the files are an adapter's, behind the interfaces in ports.go.
// Start at [Service].
package snapshot

import (
	"net"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vmm"
)

// IDPrefix starts every snapshot's id.
const IDPrefix = "snap_"

// Kind says on whose behalf a snapshot was taken, and so who may remove it.
type Kind string

// The kinds.
const (
	Manual    Kind = "manual"    // its owner's: only the owner removes it
	Automatic Kind = "automatic" // a program's, on its rounds: the oldest make room for new ones of the same owner
	Warm      Kind = "warm"      // hatchd's own: a guest that new VMs begin as; makes room for all, and takes room from its own kind only
	Passing   Kind = "passing"   // of one fork: never stored, gone with it
)

// Snapshot is one. It counts once it is durable: until then the files may be
// torn, and the next start of the daemon removes it.
type Snapshot struct {
	ID, OwnerID string
	VMID        string // of the VM it was taken of, which may be gone
	Name        string // "" or unique per owner
	Kind        Kind
	ParentID    string // the snapshot that the VM had last been put to or made from; "" for none
	VM          Origin
	Machine     Machine
	Durable     bool
	Bytes       int64 // on the host's disk
	Sums        Sums
	CreatedAt   time.Time
}

// Origin is what the VM was. A VM that is made from the snapshot is the same,
// but for what makes it itself.
type Origin struct {
	Hostname   string            `json:"hostname"`
	InstanceID string            `json:"instance_id"` // what the guest's cloud-init knows it as
	ImageID    string            `json:"image_id"`
	TemplateID string            `json:"template_id"`
	Boot       image.Boot        `json:"boot"`
	Initramfs  string            `json:"initramfs"` // the name of the archive that it was booted with
	VCPUs      int               `json:"vcpus"`
	MemMiB     int               `json:"mem_mib"`
	DiskMiB    int               `json:"disk_mib"`
	BootArgs   string            `json:"boot_args"`
	Network    bool              `json:"network"`
	MAC        net.HardwareAddr  `json:"mac"`     // nil without a network
	Address    netip.Addr        `json:"address"` // invalid without a network
	UserData   string            `json:"user_data"`
	SSHKeys    []string          `json:"ssh_keys"`
	Labels     map[string]string `json:"labels"`
	RateLimits vmm.RateLimits    `json:"rate_limits,omitzero"`
}

// Machine is what the snapshot needs of a host: it is woken there, or nowhere.
type Machine struct {
	Driver  string `json:"driver"`
	Version string `json:"version"` // of the VMM program
	Accel   string `json:"accel"`
	CPU     string `json:"cpu"` // of the host
}

// Sums are the checksums of a snapshot's parts, sha256:HEX. Those of memory and
// disk are of the list of their chunks' checksums.
type Sums struct {
	Devices string `json:"devices"`
	Memory  string `json:"memory"`
	Disk    string `json:"disk"`
}

// Filter narrows a list. Zero fields do not narrow.
type Filter struct {
	VMID string
}

// Limits are the operator's choices.
type Limits struct {
	PerVM   int           // snapshots of one VM
	MaxAge  time.Duration // of automatic ones; 0: they get as old as there is room
	DiskMiB int64         // all snapshots together; 0: as much as the disk has beside the host's reserve
}
