package vm

import (
	"slices"

	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
)

// MaxClones is how many VMs one request may clone.
const MaxClones = 64

// SnapshotRequest is how a snapshot is to be taken.
type SnapshotRequest struct {
	Name      string // "" for none
	Automatic bool   // it may be evicted to make room for others
	Stop      bool   // the VM sleeps afterwards; without, it continues
}

// CloneRequest is what sets clones apart from the snapshot or VM that they are
// made from.
type CloneRequest struct {
	Count int    // 1 to MaxClones
	Name  string // "" for none; with more than one, "-1", "-2"… is added
	// Description, labels, user data, SSH keys and ports replace the original's; a
	// hostname can be given for one clone. Nothing else can be given.
	machine.Overrides
}

// Setup returns what cloud-init has to do in the clones.
func (r CloneRequest) Setup() Setup {
	switch {
	case r.UserData != nil:
		return SetupAnew
	case len(r.SSHKeys) > 0:
		return SetupKeys
	default:
		return SetupNone
	}
}

// Clones are the VMs that one request has made.
type Clones struct {
	VMs    []VM
	Failed []error // why each of the others was not made; nothing is left of them
}

// CloneOf returns the VM that a request makes from a snapshot, without an id, a
// name or times.
func CloneOf(snap snapshot.Snapshot, req CloneRequest) VM {
	spec := snap.VM.Spec
	spec.Hostname = "" // each clone has its own
	if req.Labels != nil {
		spec.Labels = nil // the request's replace them
	}
	spec = machine.Merge(spec, machine.Overrides{Ports: anyHostPorts(spec.Ports)}, req.Overrides)
	spec.Driver = snap.Machine.Driver
	v := VM{
		OwnerID: snap.OwnerID, Spec: spec, SnapshotID: snap.ID,
		Intent: IntentRunning, State: Starting, Unconfirmed: FromSnapshot,
	}
	v.ClonedFrom = Source{VMID: snap.VMID, SnapshotID: snap.ID, Snapshot: snap.Name}
	if snap.Kind == snapshot.Ephemeral { // deleted with the fork
		v.SnapshotID, v.ClonedFrom = snap.ParentID, Source{VMID: snap.VMID}
	}
	if req.Setup() != SetupAnew {
		v.Instance = snap.VM.InstanceID
	}
	return v
}

// anyHostPorts returns the ports without the host ports that they name, which the
// original has: each clone gets others.
func anyHostPorts(ports []machine.Port) []machine.Port {
	ports = slices.Clone(ports)
	for i := range ports {
		ports[i].Host = 0
	}
	return ports
}
