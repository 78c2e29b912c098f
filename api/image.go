package api

import "time"

// DefaultImageID is the image a VM gets when none is named.
const DefaultImageID = "img_default"

// CreateImage is the body of POST /images: a kernel and a root file system
// that already lie on the host.
type CreateImage struct {
	ID          string `json:"id,omitempty" doc:"img_ and lower-case letters, digits or _. Made up when absent."`
	Name        string `json:"name,omitempty" maxLength:"63" doc:"Name, unique per owner."`
	KernelPath  string `json:"kernel_path" doc:"Absolute path of a bzImage or ELF kernel on the host."`
	RootfsPath  string `json:"rootfs_path" doc:"Absolute path of a raw root file system image on the host."`
	ModulesPath string `json:"modules_path,omitempty" doc:"Directory with the kernel's modules (as in /lib/modules/VERSION). Looked for beside the kernel and in the root file system when absent."`
	BootArgs    string `json:"boot_args,omitempty" maxLength:"2048" doc:"Kernel boot arguments for VMs of this image."`
}

// Image is a kernel and a root file system that VMs start from.
type Image struct {
	ID            string    `json:"id" example:"img_default"`
	Name          string    `json:"name,omitempty"`
	KernelPath    string    `json:"kernel_path,omitempty" doc:"Shown on GET of one image only."`
	RootfsPath    string    `json:"rootfs_path,omitempty" doc:"Shown on GET of one image only."`
	ModulesPath   string    `json:"modules_path,omitempty" doc:"Shown on GET of one image only."`
	BootArgs      string    `json:"boot_args,omitempty"`
	KernelVersion string    `json:"kernel_version,omitempty" example:"6.1.0-41-cloud-amd64"`
	KernelDigest  string    `json:"kernel_digest" example:"sha256:…"`
	RootfsDigest  string    `json:"rootfs_digest" example:"sha256:…"`
	RootfsFormat  string    `json:"rootfs_format" enum:"ext4,squashfs,erofs,xfs,btrfs" doc:"File system of the root."`
	RootfsBytes   int64     `json:"rootfs_bytes" doc:"Size of the root file system image in bytes."`
	DiskMode      string    `json:"disk_mode" enum:"overlay,copy" doc:"overlay: VMs share the root read-only and have an overlay disk. copy: each VM has its own copy."`
	CloudInit     bool      `json:"cloud_init" doc:"Whether the image has cloud-init."`
	CreatedAt     time.Time `json:"created_at"`

	Warm []WarmGuest `json:"warm,omitempty" nullable:"false" doc:"Guests of this image that are kept booted, and those on their way. Shown on GET of one image only."`
}

// States of a booted guest that is kept.
const (
	WarmReady    = "ready"
	WarmBuilding = "building"
	WarmFailed   = "failed"
)

// WarmImage is the body of POST /images/{id}/warm: what VMs will be created with
// that are to begin as this guest. A nil field takes what a create would.
type WarmImage struct {
	VCPUCount     *int    `json:"vcpu_count,omitempty" minimum:"1" maximum:"4096" doc:"Number of virtual CPUs. Defaults to HATCH_DEFAULT_VCPU (1)."`
	MemMiB        *int    `json:"mem_mib,omitempty" minimum:"64" maximum:"67108864" doc:"Memory size in MiB. Defaults to HATCH_DEFAULT_MEM_MIB (512)."`
	DiskMiB       *int    `json:"disk_mib,omitempty" minimum:"64" maximum:"16777216" doc:"Size of the VM's own disk in MiB. Defaults to HATCH_DEFAULT_DISK_MIB."`
	BootArgs      *string `json:"boot_args,omitempty" maxLength:"1536" doc:"Kernel boot arguments. Defaults to the image's, else HATCH_DEFAULT_BOOT_ARGS."`
	EnableNetwork *bool   `json:"enable_network,omitempty" doc:"Whether it has a network. Defaults to true."`
	VMM           string  `json:"vmm,omitempty" doc:"Driver: auto (default), qemu or firecracker." example:"auto"`
}

// WarmGuest is a guest that is kept booted. VMs with all of these fields begin
// as copies of it.
type WarmGuest struct {
	State         string    `json:"state" enum:"ready,building,failed"`
	Reason        string    `json:"reason,omitempty" doc:"Why it failed."`
	VCPUCount     int       `json:"vcpu_count"`
	MemMiB        int       `json:"mem_mib"`
	DiskMiB       int       `json:"disk_mib"`
	BootArgs      string    `json:"boot_args,omitempty"`
	EnableNetwork bool      `json:"enable_network"`
	VMM           string    `json:"vmm"`
	SizeBytes     int64     `json:"size_bytes,omitempty" doc:"What it takes on the host's disk, once ready."`
	CreatedAt     time.Time `json:"created_at" doc:"When it was ready, was asked for, or has failed."`
}

// BuildImage is the body of POST /images/builds.
type BuildImage struct {
	Recipe string `json:"recipe,omitempty" enum:"debian,minimal" default:"debian" doc:"debian: Debian 12 with systemd, sshd and cloud-init, becomes img_default. minimal: a busybox userland, becomes img_minimal."`
	Force  bool   `json:"force,omitempty" doc:"Build even when the cache has this image."`
}

// ImageBuild is a build under way or ended.
type ImageBuild struct {
	ID         string     `json:"id" example:"bld_abc123def456"`
	Recipe     string     `json:"recipe"`
	State      string     `json:"state" enum:"running,done,failed"`
	Error      string     `json:"error,omitempty"`
	ImageID    string     `json:"image_id,omitempty" doc:"The image, once done."`
	Cached     bool       `json:"cached" doc:"Whether the cache already had it."`
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}
