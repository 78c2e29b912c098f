package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Where programs in the guest find this program: its file in the initramfs, which stays in
// memory anyway, is mounted on the first, and the second is a link to it in their PATH.
const (
	commandFile = "run/hatch/hatch-agent"
	commandLink = "usr/local/bin/hatch-agent"
)

// offerCommand lets programs in the guest start this program. Precondition: /run is
// mounted in newRoot, and the root is not switched yet.
func offerCommand() error {
	root, err := os.OpenRoot(newRoot)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	target := filepath.Join(newRoot, commandFile)
	if err := root.MkdirAll(filepath.Dir(commandFile), 0o755); err != nil {
		return err
	}
	if err := root.WriteFile(commandFile, nil, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/init", target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot mount the agent's program: %w", err)
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("cannot protect the agent's program: %w", err)
	}
	return linkCommand(root)
}

// linkCommand makes the link unless the image has something of that name.
func linkCommand(root *os.Root) error {
	if err := root.MkdirAll(filepath.Dir(commandLink), 0o755); err != nil {
		return err
	}
	if err := root.Symlink("/"+commandFile, commandLink); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
