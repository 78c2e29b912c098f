package api

import "time"

// Kinds of snapshots.
const (
	SnapshotManual    = "manual"
	SnapshotAutomatic = "automatic"
)

// CreateSnapshot is the body of POST /vms/{id}/snapshot.
type CreateSnapshot struct {
	Name      string `json:"name,omitempty" maxLength:"63" doc:"Letters, digits, '.', '_' and '-', a letter or digit first. Unique per owner; it stands for the ID." example:"before-upgrade"`
	Stop      bool   `json:"stop,omitempty" doc:"Whether the VM sleeps afterwards, and becomes snapshotted. Else it goes on."`
	Automatic bool   `json:"automatic,omitempty" doc:"Whether the snapshot may be removed to make room for a later one."`
}

// Snapshot is what was kept of a VM at one moment: memory, devices and disk.
type Snapshot struct {
	ID            string                `json:"id" doc:"Unique snapshot identifier." example:"snap_abc123def456"`
	VMID          string                `json:"vm_id" doc:"The VM it was taken of, which may be gone."`
	Name          string                `json:"name,omitempty" doc:"Its name, which stands for the ID."`
	Kind          string                `json:"kind" enum:"manual,automatic" doc:"Who removes it: its owner alone, or also Hatch, to make room."`
	ParentID      string                `json:"parent_id,omitempty" doc:"The snapshot that the VM went on from before this one."`
	Durable       bool                  `json:"durable" doc:"Whether all of it is safe on disk. Until then it cannot be used."`
	SizeBytes     int64                 `json:"size_bytes" doc:"What it takes on the host's disk."`
	Checksums     SnapshotChecksums     `json:"checksums" doc:"Of its parts, sha256:HEX; empty until it is durable."`
	Compatibility SnapshotCompatibility `json:"compatibility" doc:"What it needs of a host."`
	VMConfig      SnapshotVMConfig      `json:"vm_config" doc:"What the VM was."`
	CreatedAt     time.Time             `json:"created_at" doc:"When the guest stood still for it, RFC 3339, UTC."`
}

// SnapshotChecksums are of the parts of a snapshot.
type SnapshotChecksums struct {
	Devices string `json:"devices" doc:"Of the devices' and CPUs' state."`
	Memory  string `json:"memory" doc:"Of the guest's memory, by way of its chunks' checksums."`
	Disk    string `json:"disk" doc:"Of the VM's own disk, likewise."`
}

// SnapshotCompatibility says what a snapshot needs of a host, and whether this
// one has it.
type SnapshotCompatibility struct {
	VMM          string `json:"vmm" doc:"The driver that it was taken with." example:"qemu"`
	VMMVersion   string `json:"vmm_version" doc:"The version of the VMM's program."`
	Acceleration string `json:"acceleration" doc:"How the guest's CPUs are run." example:"kvm"`
	CPU          string `json:"cpu" doc:"The host's processor."`
	Usable       bool   `json:"usable" doc:"Whether it can be used on this host as it is now."`
	Reason       string `json:"reason,omitempty" doc:"Why not, in words."`
}

// SnapshotVMConfig is what the VM of a snapshot was. User data and keys are
// left out; they may hold secrets.
type SnapshotVMConfig struct {
	Hostname      string      `json:"hostname"`
	ImageID       string      `json:"image_id"`
	TemplateID    string      `json:"template_id,omitempty"`
	VCPUCount     int         `json:"vcpu_count"`
	MemMiB        int         `json:"mem_mib"`
	DiskMiB       int         `json:"disk_mib"`
	BootArgs      string      `json:"boot_args,omitempty"`
	EnableNetwork bool        `json:"enable_network"`
	GuestIP       string      `json:"guest_ip,omitempty"`
	GuestMAC      string      `json:"guest_mac,omitempty"`
	RateLimits    *RateLimits `json:"rate_limits,omitempty"`
}

// RestoreVM is the body of POST /vms/{id}/restore.
type RestoreVM struct {
	SnapshotID string `json:"snapshot_id,omitempty" maxLength:"63" doc:"ID or name of the snapshot to go back to, one of this VM. Defaults to the newest."`
}

// ForkVM is the body of POST /vms/{id}/fork. What it does not say, the new VMs
// have from the one that they are made of.
type ForkVM struct {
	Count             *int              `json:"count,omitempty" minimum:"1" maximum:"64" doc:"How many VMs to make. Defaults to 1."`
	Name              string            `json:"name,omitempty" maxLength:"63" doc:"Name and hostname; with several VMs -1, -2 and so on is added."`
	Labels            map[string]string `json:"labels,omitempty" doc:"Labels, in place of the VM's own."`
	UserData          *string           `json:"user_data,omitempty" doc:"New cloud-init user data: cloud-init does all its work once more in the new VMs, with it. Without, none of the user data that was applied is applied again."`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false" doc:"Public keys, authorized_keys form, that the image's default user has beside those that are there."`
}

// Copies are the VMs that one request has made of a VM or a snapshot.
type Copies struct {
	VMs    []VM      `json:"vms" nullable:"false" doc:"The new VMs. They run, each as a machine of its own."`
	Failed []Failure `json:"failed" nullable:"false" doc:"Why each of the others was not made. Nothing is left of those."`
}

// Failure says why one part of a request has failed.
type Failure struct {
	Code    string `json:"code" doc:"Why, as one stable word."`
	Message string `json:"message" doc:"Why, in words."`
	Field   string `json:"field,omitempty" doc:"The field at fault, if one is."`
	Hint    string `json:"hint,omitempty" doc:"What to do."`
}
