// Package disk says what a VM's disks are: what each is for, by what serial the
// guest finds it, how large it is, and who may write to it.
//
// It makes no files: internal/host/disk does, and knows where they are. Drivers
// get vmm.Disk, which is a disk with a path. Start at [Disk]; a VM's disks are
// [vm.VM.Disks].
package disk

// Kind says what a disk is for, and with it how long its bytes live.
type Kind string

// The kinds.
const (
	// Image is the root file system of an image. Its VMs share it, and none of
	// them writes to it.
	Image Kind = "image"
	// Own is the VM's own disk. It is made with the VM, is part of its snapshots,
	// and is deleted with it.
	Own Kind = "own"
	// Seed is the NoCloud disk that cloud-init reads. It is made anew from the VM's
	// row whenever that is needed, so that it is no part of a snapshot.
	Seed Kind = "seed"
)

// Disk is one block device of a VM.
type Disk struct {
	Kind     Kind
	Serial   string // which the guest sees; unique among the VM's disks, at most 20 bytes
	SizeMiB  int    // 0: as its file is
	ReadOnly bool
}

// The disks of which a VM has one at most. The agent in the initramfs looks for
// their serials.
var (
	rootDisk = Disk{Kind: Image, Serial: "hatch-root", ReadOnly: true}
	ownDisk  = Disk{Kind: Own, Serial: "hatch-disk"}
	seedDisk = Disk{Kind: Seed, Serial: "hatch-seed", ReadOnly: true}
)

// Layout returns the disks of a VM in the order in which its guest sees them. With
// shared, the image's root file system is a disk beside the VM's own of ownMiB;
// else it was copied into that.
func Layout(shared bool, ownMiB int) []Disk {
	own := ownDisk
	own.SizeMiB = ownMiB
	if shared {
		return []Disk{rootDisk, own, seedDisk}
	}
	return []Disk{own, seedDisk}
}
