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

// wordsPause is how often a followed log of a VMM is looked at: it is written
// elsewhere, and nothing tells when.
const wordsPause = 200 * time.Millisecond

// VMMLog implements vm.Consoles. A VMM that printed nothing has an empty log.
func (c *Consoles) VMMLog(ctx context.Context, vmID string, tail int, follow bool, w io.Writer) error {
	h := c.hub(vmID) // before the file, so that what is followed is of this machine
	f, err := os.Open(filepath.Join(c.dir(vmID), vmm.LogName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the VMM's log: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, c.most))
	if err != nil {
		return fmt.Errorf("cannot read the VMM's log: %w", err)
	}
	if _, err := w.Write(lastLines(text, tail)); err != nil || !follow || h == nil {
		return err
	}
	return followWords(ctx, f, h.done, w)
}

// followWords copies what is appended to f until ctx is done, or for as long
// after ended as its last words may take.
func followWords(ctx context.Context, f io.Reader, ended <-chan struct{}, w io.Writer) error {
	tick := time.NewTicker(wordsPause)
	defer tick.Stop()
	for over := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			over, ended = true, nil
			continue
		case <-tick.C:
		}
		if _, err := io.Copy(w, f); err != nil || over {
			return err
		}
	}
}
