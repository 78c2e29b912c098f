// Package snapshot is about snapshots of VMs: the memory, the state of the
// devices and the disk of one moment.
//
// It lists, bounds, evicts and deletes snapshots, and says when a new one is
// durable. Taking and restoring them and making clones is internal/vm/clone's;
// the files are an adapter's, behind the interfaces in ports.go. Start at [Service].
package snapshot

import (
	"net"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
)

// IDPrefix starts every snapshot's id.
const IDPrefix = "snap_"

// Kind says on whose behalf a snapshot was taken, and so who may remove it.
type Kind string

// The kinds.
const (
	Manual    Kind = "manual"    // only its owner deletes it
	Automatic Kind = "automatic" // taken by a program: the oldest are evicted for new ones of the same owner
	Warm      Kind = "warm"      // of the warm pool: evicted for any other, and evicts only its own kind
	Ephemeral Kind = "passing"   // of one fork: never stored, deleted with it
)

// Snapshot is one snapshot. It can be used once it is durable: until then its
// files may be torn, and the next start of hatchd deletes it.
type Snapshot struct {
	ID, OwnerID string
	VMID        string // of the VM it was taken of, which may be deleted
	Name        string // "" or unique per owner
	Kind        Kind
	ParentID    string // the snapshot that the VM was last restored to or cloned from; "" for none
	VM          Origin
	Machine     Machine
	Durable     bool
	Bytes       int64 // on the host's disk
	Sums        Sums
	CreatedAt   time.Time

	// SealedUserData is VM.UserData as the store has encrypted it; lists have it alone.
	SealedUserData []byte
}

// Origin is the VM that the snapshot was taken of; its Hostname is the guest's,
// also where the VM's spec has none. A clone has all of it but the identity. Its
// JSON form is stored: keys never change.
type Origin struct {
	machine.Spec
	InstanceID string           `json:"instance_id"` // cloud-init's in the guest
	Initramfs  string           `json:"initramfs"`   // file name of the initramfs that it was booted with
	MAC        net.HardwareAddr `json:"mac"`         // nil without a network
	Address    netip.Addr       `json:"address"`     // invalid without a network
}

// Machine is what a host must have, unchanged, for the snapshot to be woken there.
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
	MaxAge  time.Duration // of automatic ones; 0: no limit
	DiskMiB int64         // all snapshots together; 0: no limit but the host's reserve
}

// Unusable is the error of a snapshot that cannot be used on this host.
func Unusable(snap Snapshot, why string) *errs.Error {
	return errs.New(errs.Conflict, "snapshot_unusable", "snapshot %s cannot be used here: %s", snap.ID, why).
		WithHint("use another one: compatibility.usable of GET /snapshots says which; this one can be used again when everything is as it was")
}
