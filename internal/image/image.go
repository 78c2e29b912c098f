// Package image is about what VMs start from: a kernel and a root file system,
// checked once when they are registered, and the initramfs that makes any of
// them boot.
//
// It decides; it does not read file systems or run programs itself: that is
// done by the adapters behind the interfaces in ports.go. Start at [Service].
package image

import (
	"os"
	"syscall"
	"time"
)

// DefaultID is the image a VM gets when none is named; MinimalID is the
// busybox image's.
const (
	DefaultID = "img_default"
	MinimalID = "img_minimal"
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
	KernelVersion     string // as uname -r; "" when the kernel does not tell
	ModulesPath       string // directory of the kernel's modules; "" when it needs none
	Rootfs            File
	RootfsFormat      string // ext4, squashfs, erofs, xfs, btrfs
	DiskMode          DiskMode
	BootArgs          string // "" for the daemon's default
	CloudInit         bool
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

// Unchanged reports whether the file on disk is still the registered one, as
// far as size, inode and modification time tell.
func (f File) Unchanged() bool {
	st, err := os.Stat(f.Path)
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Ino == f.Inode && st.Size() == f.Size && sameTime(st.ModTime(), f.ModTime)
}

// Boot is what a VM of an image needs to start. A VM keeps the one it was
// created with.
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

// Boot returns what a VM keeps of the image.
func (i Image) Boot() Boot {
	return Boot{
		ImageID: i.ID, Kernel: i.Kernel, Rootfs: i.Rootfs, RootfsFormat: i.RootfsFormat,
		ModulesPath: i.ModulesPath, DiskMode: i.DiskMode, BootArgs: i.BootArgs, CloudInit: i.CloudInit,
	}
}

// Stat returns the file's identity without its digest; for files whose content
// nobody compares.
func Stat(path string) (File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return File{}, err
	}
	f := File{Path: path, Size: st.Size(), ModTime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		f.Inode = sys.Ino
	}
	return f, nil
}

// sameTime compares as exactly as a stored time is: to the microsecond.
func sameTime(a, b time.Time) bool {
	return a.Truncate(time.Microsecond).Equal(b.Truncate(time.Microsecond))
}
