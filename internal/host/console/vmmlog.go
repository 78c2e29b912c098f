package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
)

// pollInterval is how often a followed log of a VMM, which other processes write,
// is read.
const pollInterval = 200 * time.Millisecond

// VMMLog implements vm.Consoles. A VMM that printed nothing has an empty log.
func (c *Consoles) VMMLog(ctx context.Context, vmID string, tail int, following bool, w io.Writer) error {
	h := c.hub(vmID) // before the file, so that the file is of this machine
	f, err := os.Open(filepath.Join(c.dir(vmID), vmm.LogName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the VMM's log: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, c.maxBytes))
	if err != nil {
		return fmt.Errorf("cannot read the VMM's log: %w", err)
	}
	if _, err := w.Write(lastLines(text, tail)); err != nil || !following || h == nil {
		return err
	}
	return follow(ctx, f, h.done, w)
}

// follow copies what is appended to f until ctx is done, and once more after ended
// was closed: the VMM's last output may come late.
func follow(ctx context.Context, f io.Reader, ended <-chan struct{}, w io.Writer) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for last := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			last, ended = true, nil
			continue
		case <-tick.C:
		}
		if _, err := io.Copy(w, f); err != nil || last {
			return err
		}
	}
}
