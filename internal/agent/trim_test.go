package agent

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/agent/drives"
)

func TestOwnDisk(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "proc/cmdline"), "quiet\n")
	if _, err := ownDisk(root); err == nil || !strings.Contains(err.Error(), drives.Own) {
		t.Errorf("without the disk: %v", err)
	}
	write(t, filepath.Join(root, "sys/block/vda/serial"), "hatch-root")
	write(t, filepath.Join(root, "sys/block/vdb/serial"), drives.Own+"\n")
	write(t, filepath.Join(root, "sys/block/vdb/queue/discard_max_bytes"), "2147483136\n")
	if device, err := ownDisk(root); err != nil || device != filepath.Join(root, "dev/vdb") {
		t.Errorf("the disk is %q, %v", device, err)
	}
	write(t, filepath.Join(root, "sys/block/vdb/queue/discard_max_bytes"), "0\n")
	if _, err := ownDisk(root); !errors.Is(err, errNoDiscard) {
		t.Errorf("of a VMM without discard: %v", err)
	}
}
