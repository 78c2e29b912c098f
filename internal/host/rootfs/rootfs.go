// Package rootfs inspects the files of an image when it is registered: whether the
// kernel is one, the format of the root file system, and whether the kernel has,
// built in or as modules, every driver that a VM needs to boot from it.
//
// It neither mounts an image nor runs a program of it. To read files of a root file
// system it runs debugfs or unsquashfs as an unprivileged user, with bounded time
// and output. These read ext4 and squashfs; of erofs, xfs and btrfs it reads only
// the superblock: their modules must be given, and cloud-init in them is not
// detected. Start at [Inspector.Inspect].
package rootfs

import (
	"context"
	"errors"
	"os"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

var _ image.Inspector = (*Inspector)(nil)

// Config configures an [Inspector].
type Config struct {
	// ModulesDir is the directory for modules of root file systems, each set in a
	// directory named after its content. It is made when missing.
	ModulesDir string

	// Modules names modules to extract from a root file system beside the needed
	// ones, if it has them; with underscores.
	Modules []string

	// NeedsPVH refuses uncompressed kernels without the PVH entry point, for a
	// VMM that has no other way to start them.
	NeedsPVH bool

	// Reserve is how many bytes of the data directory's file system copies leave free.
	Reserve int64

	// Private are directories, such as that of VMs' disks, whose files are never used as
	// images. They need not exist.
	Private []string

	// Dirs are the directories of files that clients may register; nil for none.
	Dirs *Dirs
}

// Inspector implements image.Inspector. It inspects one image at a time: a
// decompressed kernel needs much memory.
type Inspector struct {
	config Config
	turn   chan struct{} // capacity 1: full during an inspection
}

// New returns an inspector; it owns nothing that must be closed.
func New(config Config) *Inspector {
	if config.Dirs == nil {
		config.Dirs = &Dirs{}
	}
	return &Inspector{config: config, turn: make(chan struct{}, 1)}
}

// Inspect implements image.Inspector. Errors: also errs.Unsupported when the
// program that reads this format is not installed.
func (i *Inspector) Inspect(ctx context.Context, r image.Registration) (image.Facts, error) {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return image.Facts{}, ctx.Err()
	}
	src := i.sourceOf(r)
	kernelFile, err := src.file("kernel_path", r.KernelPath)
	if err != nil {
		return image.Facts{}, err
	}
	defer func() { _ = kernelFile.Close() }()
	rootFile, err := src.file("rootfs_path", r.RootfsPath)
	if err != nil {
		return image.Facts{}, err
	}
	defer func() { _ = rootFile.Close() }()
	facts, err := i.inspect(ctx, src, r, kernelFile, rootFile)
	if err != nil {
		return image.Facts{}, err
	}
	if facts.Kernel, err = identify(ctx, "kernel_path", r.KernelPath, kernelFile); err != nil {
		return image.Facts{}, err
	}
	if facts.Rootfs, err = identify(ctx, "rootfs_path", r.RootfsPath, rootFile); err != nil {
		return image.Facts{}, err
	}
	return facts, nil
}

// inspect finds all facts except the files' identities.
func (i *Inspector) inspect(ctx context.Context, src source, r image.Registration, kernelFile, rootFile *os.File) (image.Facts, error) {
	form, err := readFormat(rootFile)
	if err != nil {
		return image.Facts{}, err
	}
	kern, err := i.readKernel(src, kernelFile, r.KernelPath)
	if err != nil {
		return image.Facts{}, err
	}
	t, err := i.openTree(ctx, form.name, rootFile)
	if err != nil {
		return image.Facts{}, err
	}
	defer t.close()
	cloud, err := t.hasCloudInit(ctx)
	if errors.Is(err, errDamaged) {
		return image.Facts{}, errs.InvalidField("rootfs_path", "%s cannot be used: %v", r.RootfsPath, err).
			WithHint("check the file system (e2fsck -fn for ext4), or copy the file again from its source")
	}
	if err != nil {
		return image.Facts{}, err
	}
	found, err := i.findDrivers(ctx, src, r, kern, t, needsOf(form, cloud))
	if err != nil {
		return image.Facts{}, err
	}
	return image.Facts{
		KernelVersion: kern.version, ModulesPath: found.modulesPath,
		RootfsFormat: form.name, DiskMode: found.mode, CloudInit: cloud,
	}, nil
}
