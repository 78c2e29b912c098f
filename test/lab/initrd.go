package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// drivers are the modules that the host's root disk needs, in the order of loading.
var drivers = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"}

// initScript is /init of the initrd: it mounts the root disk and starts systemd.
const initScript = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
/bin/busybox mount -t ext4 /dev/vda /root || exec /bin/busybox sh
exec /bin/busybox switch_root /root /sbin/init
`

// makeInitrd writes the host's initrd: busybox, initScript, drivers.
func makeInitrd(path, modules string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("cannot make the initrd; install busybox-static: %w", err)
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	w := cpio.NewWriter(out)
	var failed []error
	for _, dir := range []string{"bin", "dev", "modules", "root"} {
		failed = append(failed, w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}))
	}
	failed = append(failed, addBytes(w, "init", []byte(initScript)), addFile(w, "bin/busybox", busybox))
	for i, name := range drivers {
		file, err := findModule(modules, name)
		failed = append(failed, err, addFile(w, fmt.Sprintf("modules/%d-%s.ko", i, name), file))
	}
	return errors.Join(append(failed, w.Close(), out.Close())...)
}

func addFile(w *cpio.Writer, name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return addBytes(w, name, data)
}

func addBytes(w *cpio.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// findModule returns the path of a kernel module below dir.
func findModule(dir, name string) (path string, err error) {
	err = filepath.WalkDir(dir, func(at string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == name+".ko" {
			path = at
			return fs.SkipAll
		}
		return err
	})
	if err == nil && path == "" {
		err = fmt.Errorf("%s has no module %s", dir, name)
	}
	return path, err
}
