package api

// Kinds of snapshots.
const (
	SnapshotManual    = "manual"
	SnapshotAutomatic = "automatic"
)

// CreateSnapshot is the body of POST /vms/{id}/snapshot.
type CreateSnapshot struct {
	Name      string `json:"name,omitempty" maxLength:"63" doc:"Letters, digits, '.', '_' and '-', beginning with a letter or digit. Unique per owner. Can be used instead of the ID." example:"before-upgrade"`
	Stop      bool   `json:"stop,omitempty" doc:"Put the VM to sleep with the snapshot: its state becomes snapshotted. Otherwise its state does not change."`
	Automatic bool   `json:"automatic,omitempty" doc:"Whether hatchd may evict the snapshot in favour of a later one."`
}

// Snapshot is the saved memory, devices and disk of a VM at one moment.
type Snapshot struct {
	ID            string                `json:"id" doc:"Unique snapshot identifier." example:"snap_abc123def456"`
	VMID          string                `json:"vm_id" doc:"The VM that the snapshot was taken of. It may be deleted since."`
	Name          string                `json:"name,omitempty" doc:"Name. Can be used instead of the ID."`
	Kind          string                `json:"kind" enum:"manual,automatic" doc:"manual: only its owner deletes it. automatic: hatchd may evict it in favour of a later one."`
	ParentID      string                `json:"parent_id,omitempty" doc:"Snapshot that the VM was last restored to or cloned from before this one."`
	Durable       bool                  `json:"durable" doc:"Whether the snapshot is complete and synced to disk. Until then it cannot be used."`
	SizeBytes     int64                 `json:"size_bytes" doc:"Size on the host's disk in bytes."`
	Checksums     SnapshotChecksums     `json:"checksums" doc:"Checksums of its parts, sha256:HEX. Empty until it is durable."`
	Compatibility SnapshotCompatibility `json:"compatibility" doc:"Requirements on the host."`
	VMConfig      SnapshotVMConfig      `json:"vm_config" doc:"Configuration of the VM at that time."`
	CreatedAt     Time                  `json:"created_at" doc:"Time at which the guest was paused for it, RFC 3339, UTC."`
}

// SnapshotChecksums are the checksums of the parts of a snapshot.
type SnapshotChecksums struct {
	Devices string `json:"devices" doc:"State of devices and CPUs."`
	Memory  string `json:"memory" doc:"The guest's memory, as a checksum of the checksums of its chunks."`
	Disk    string `json:"disk" doc:"The VM's own disk, computed like that of the memory."`
}

// SnapshotCompatibility says what a snapshot requires of a host, and whether this
// host meets it.
type SnapshotCompatibility struct {
	VMM          string `json:"vmm" doc:"Driver that took the snapshot." example:"qemu"`
	VMMVersion   string `json:"vmm_version" doc:"Version of the VMM."`
	Acceleration string `json:"acceleration" doc:"How the guest's CPUs are executed." example:"kvm"`
	CPU          string `json:"cpu" doc:"CPU model of the host that took the snapshot."`
	Usable       bool   `json:"usable" doc:"Whether the snapshot can be used on this host in its current configuration."`
	Reason       string `json:"reason,omitempty" doc:"Why it is not usable."`
}

// SnapshotVMConfig is the configuration of a snapshot's VM. It has no user data or
// keys, which may be secret.
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
	SnapshotID string `json:"snapshot_id,omitempty" maxLength:"63" doc:"ID or name of the snapshot to restore, which must be one of this VM. Defaults to the newest."`
}

// ForkVM is the body of POST /vms/{id}/fork. Clones inherit everything else from
// the forked VM.
type ForkVM struct {
	Count             *int              `json:"count,omitempty" minimum:"1" maximum:"64" doc:"Number of clones. Defaults to 1."`
	Name              string            `json:"name,omitempty" maxLength:"63" doc:"Name and hostname; with several clones, -1, -2 and so on is added."`
	Labels            map[string]string `json:"labels,omitempty" doc:"Labels, instead of those of the forked VM."`
	UserData          *string           `json:"user_data,omitempty" doc:"New cloud-init user data: cloud-init runs again in the clones and applies it. Without it, the old user data is not applied again."`
	UserDataEncoding  string            `json:"user_data_encoding,omitempty" enum:"utf8,base64" doc:"Encoding of user_data. Defaults to utf8."`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false" doc:"Public keys in authorized_keys form to add for the image's default user."`
}

// Copies are the clones that one request has created.
type Copies struct {
	VMs    []VM      `json:"vms" nullable:"false" doc:"Clones that are running, each with its own identity."`
	Failed []Failure `json:"failed" nullable:"false" doc:"Why each of the others could not be created. Nothing is left of them."`
}

// Failure says why one part of a request failed.
type Failure struct {
	Code    string `json:"code" doc:"Stable machine-readable code."`
	Message string `json:"message" doc:"Why, as text for people."`
	Field   string `json:"field,omitempty" doc:"Field of the request that is wrong, if any."`
	Hint    string `json:"hint,omitempty" doc:"What to do."`
	VMID    string `json:"vm_id,omitempty" doc:"The VM, if it was left in state error."`
}
