// Package rootfs looks into the files of an image when it is registered: is
// the kernel one, which file system has the root, does the kernel have, built
// in or as modules, every driver that a VM needs to boot from it.
//
// It never mounts an image and never runs anything of it. Where it must read
// files of a root file system, it runs debugfs or unsquashfs as the user
// nobody, with bounded time and output, and takes what they print. Only ext4
// and squashfs can be read so; of erofs, xfs and btrfs just the superblock is,
// so that their modules must be given and cloud-init is not noticed in them.
// Start at [Inspector.Inspect].
package rootfs

import (
	"context"
	"errors"
	"os"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

var _ image.Inspector = (*Inspector)(nil)

// Config says how an [Inspector] works.
type Config struct {
	// ModulesDir is where modules that come out of root file systems are kept,
	// each set in a directory named after its content. It is made when missing.
	ModulesDir string

	// Modules names modules that are taken out of a root file system beside the
	// needed ones, when they are there; with underscores.
	Modules []string

	// NeedsPVH refuses uncompressed kernels without the PVH entry point, for a
	// VMM that starts uncompressed kernels by no other.
	NeedsPVH bool
}

// Inspector implements image.Inspector. It looks at one image at a time, since
// an unpacked kernel takes much memory.
type Inspector struct {
	config Config
	turn   chan struct{} // holds the token of whoever looks
}

// New returns an inspector; it owns nothing that must be closed.
func New(config Config) *Inspector {
	return &Inspector{config: config, turn: make(chan struct{}, 1)}
}

// Inspect implements image.Inspector. Errors beside its own: errs.Unsupported
// when the program that reads this sort of root file system is not installed.
func (i *Inspector) Inspect(ctx context.Context, r image.Registration) (image.Facts, error) {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return image.Facts{}, ctx.Err()
	}
	kernelFile, err := openRegular("kernel_path", r.KernelPath)
	if err != nil {
		return image.Facts{}, err
	}
	defer func() { _ = kernelFile.Close() }()
	rootFile, err := openRegular("rootfs_path", r.RootfsPath)
	if err != nil {
		return image.Facts{}, err
	}
	defer func() { _ = rootFile.Close() }()
	facts, err := i.look(ctx, r, kernelFile, rootFile)
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

// look finds out everything but the files' digests.
func (i *Inspector) look(ctx context.Context, r image.Registration, kernelFile, rootFile *os.File) (image.Facts, error) {
	form, err := readFormat(rootFile)
	if err != nil {
		return image.Facts{}, err
	}
	kern, err := i.readKernel(kernelFile, r.KernelPath)
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
			WithHint("check the file system (e2fsck -fn for ext4), or copy the file again from where it came")
	}
	if err != nil {
		return image.Facts{}, err
	}
	found, err := i.findDrivers(ctx, r, kern, t, needsOf(form, cloud))
	if err != nil {
		return image.Facts{}, err
	}
	return image.Facts{
		KernelVersion: kern.version, ModulesPath: found.modulesPath,
		RootfsFormat: form.name, DiskMode: found.mode, CloudInit: cloud,
	}, nil
}

// toolMissing is the error for a program that the host lacks.
func toolMissing(program, pkg, format string) error {
	return errs.New(errs.Unsupported, "tool_missing",
		"cannot look into the root file system: %s, which reads %s, is not installed on the host", program, format).
		WithHint("apt-get install %s", pkg)
}
