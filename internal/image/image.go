// Package image registers images: a kernel and a root file system that VMs are made
// from, checked at registration, and the initramfs that boots them.
//
// It reads no file systems and runs no programs: the adapters behind the interfaces
// in ports.go do. Start at [Service].
package image

import (
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// DefaultID is the image of VMs that name none; MinimalID is the busybox image; BaseID is
// that for E2B's clients.
const (
	DefaultID = "img_default"
	MinimalID = "img_minimal"
	BaseID    = "img_base"
)

// DiskMode says how a VM gets a writable root.
type DiskMode string

// The disk modes.
const (
	DiskOverlay DiskMode = "overlay" // shared read-only root, overlay disk per VM
	DiskCopy    DiskMode = "copy"    // the kernel has no overlayfs: a private copy per VM
)

// Image is a registered kernel and root file system.
type Image struct {
	ID, OwnerID, Name string
	Kernel            File
	KernelVersion     string // as uname -r; "" when unknown
	ModulesPath       string // directory of the kernel's modules; "" when it needs none
	Rootfs            File
	RootfsFormat      string // ext4, squashfs, erofs, xfs, btrfs
	DiskMode          DiskMode
	BootArgs          string // "" for the daemon's default
	CloudInit         bool
	Sharing           access.Sharing
	CreatedAt         time.Time
}

// File is a file of the host that must not change under the VMs that use it.
type File struct {
	Path   string `json:"path"`
	Digest string `json:"digest"` // sha256:HEX of the content at registration
	Size   int64  `json:"size"`   // bytes
	// Identity at registration; a difference means that the file was replaced.
	ModTime time.Time `json:"mod_time"`
	Inode   uint64    `json:"inode"`
}

// Boot is the part of an image that a VM needs to start. A VM keeps that of its
// creation.
type Boot struct {
	ImageID      string   `json:"image_id"`
	Kernel       File     `json:"kernel"`
	Rootfs       File     `json:"rootfs"`
	RootfsFormat string   `json:"rootfs_format"`
	ModulesPath  string   `json:"modules_path"`
	DiskMode     DiskMode `json:"disk_mode"`
	BootArgs     string   `json:"boot_args"`
	CloudInit    bool     `json:"cloud_init"`
}

// Boot returns the part that a VM keeps.
func (i Image) Boot() Boot {
	return Boot{
		ImageID: i.ID, Kernel: i.Kernel, Rootfs: i.Rootfs, RootfsFormat: i.RootfsFormat,
		ModulesPath: i.ModulesPath, DiskMode: i.DiskMode, BootArgs: i.BootArgs, CloudInit: i.CloudInit,
	}
}
