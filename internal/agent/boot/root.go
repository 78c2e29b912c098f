package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount points of the overlay's parts, in the initramfs. The guest cannot see them once
// the root has been switched.
const (
	baseDir = "/base"
	diskDir = "/disk"
)

// knownFormats are tried in order when the command line names none.
var knownFormats = []string{"ext4", "squashfs", "erofs", "xfs", "btrfs"}

// assemble mounts the root at newRoot.
func assemble(log *slog.Logger, p params, d disks) error {
	for _, dir := range []string{newRoot, baseDir, diskDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if p.mode == ownCopy {
		// The file system keeps its size on a larger disk: the image has to grow it
		// (growpart, resize2fs).
		return mountRoot(d.own, newRoot, p.format, 0)
	}
	if err := mountRoot(d.base, baseDir, p.format, unix.MS_RDONLY); err != nil {
		return err
	}
	if err := mountRoot(d.own, diskDir, "ext4", 0); err != nil {
		return err
	}
	if err := mountOverlay(); err != nil {
		return err
	}
	log.Debug("root is assembled", "base", d.base, "disk", d.own)
	return nil
}

// mountRoot mounts a device with the format, or with the first known one that works.
func mountRoot(device, target, format string, flags uintptr) error {
	formats := []string{format}
	if format == noFormat {
		formats = knownFormats
	}
	var failed []error
	for _, f := range formats {
		err := mountAs(device, target, f, flags)
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return fmt.Errorf("cannot mount %s: %w", device, errors.Join(failed...))
}

// mountAs mounts a device with a format. If it cannot mount one read-only, it tries
// without replay of the journal, which would write to the device.
func mountAs(device, target, format string, flags uintptr) error {
	err := unix.Mount(device, target, format, flags, "")
	noReplay := map[string]string{"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}[format]
	if err != nil && flags&unix.MS_RDONLY != 0 && noReplay != "" {
		err = unix.Mount(device, target, format, flags, noReplay)
	}
	if err != nil {
		return fmt.Errorf("as %s: %w", format, err)
	}
	return nil
}

// mountOverlay mounts an overlay of the VM's disk over the base. It copies the mode of
// the base's top directory.
func mountOverlay() error {
	upper, work := filepath.Join(diskDir, "upper"), filepath.Join(diskDir, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if base, err := os.Stat(baseDir); err == nil {
		_ = os.Chmod(upper, base.Mode().Perm())
	}
	options := "lowerdir=" + baseDir + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", newRoot, "overlay", 0, options); err != nil {
		return fmt.Errorf("cannot mount the overlay: %w", err)
	}
	return nil
}

// moveMounts moves /dev, /proc and /sys into the new root, and mounts /run there. It
// creates missing mount points on the VM's own disk.
func moveMounts(log *slog.Logger) error {
	root, err := os.OpenRoot(newRoot)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, name := range []string{"dev", "proc", "sys", "run"} {
		if err := mountPoint(root, name); err != nil {
			return err
		}
		source, target, kind, flags, options := "/"+name, filepath.Join(newRoot, name), "", uintptr(unix.MS_MOVE), ""
		if name == "run" {
			source, kind, flags, options = "run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=20%"
		}
		if err := unix.Mount(source, target, kind, flags, options); err != nil {
			return fmt.Errorf("cannot mount /%s in the root: %w", name, err)
		}
	}
	log.Debug("root is ready")
	return nil
}

// mountPoint creates the directory name unless it exists. It refuses a link, which
// could lead out of the root.
func mountPoint(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return root.Mkdir(name, 0o755)
	}
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("/%s in the image is not a directory", name)
	}
	return err
}

// switchRoot makes newRoot the root of this process and of its children.
func switchRoot() error {
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("cannot enter the root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	return unix.Chdir("/")
}
