package daemon

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/file/filetest"
	"github.com/hatchvm/hatch/internal/vm"
)

var _ file.Guest = guestWithFiles{}

// guestWithFiles is a pretended guest whose files lie in its run directory.
type guestWithFiles struct {
	fakeGuest
	*filetest.Guest
}

// Close implements vm.Guest.
func (g guestWithFiles) Close() error { return errors.Join(g.fakeGuest.Close(), g.Guest.Close()) }

// withFiles gives a guest files, unless the directory for them cannot be used.
func (h *fakeHost) withFiles(vmID string, g fakeGuest) vm.Guest {
	root := filepath.Join(h.Dir(vmID), "files")
	for _, dir := range []string{"etc", "root", "tmp", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return g
		}
	}
	files, err := filetest.Open(root)
	if err != nil {
		return g
	}
	return guestWithFiles{g, files}
}
