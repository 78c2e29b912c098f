package guest

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/file"
)

// pollInterval is how often a watched directory or a followed file is polled.
const pollInterval = 10 * time.Millisecond

// WatchFiles implements file.Guest. Renames are seen as a create and a remove.
func (g *Files) WatchFiles(ctx context.Context, p string, recursive bool, began func(), report func(file.Change) error) error {
	seen, err := g.scan(p, recursive)
	if err != nil {
		return err
	}
	began()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := g.scan(p, recursive)
		if err != nil {
			return err
		}
		for _, change := range differences(seen, now) {
			if err := report(change); err != nil {
				return err
			}
		}
		seen = now
	}
}

// scan returns the watched files by path.
func (g *Files) scan(p string, recursive bool) (map[string]file.Info, error) {
	if _, err := g.stat(p); err != nil {
		return nil, err
	}
	top := local(p)
	seen := map[string]file.Info{}
	err := g.walk(top, func(name string, st fs.FileInfo) error {
		if name != top || !st.IsDir() {
			seen[name] = g.info(path.Join("/", name), st)
		}
		return nil
	}, func(name string) bool { return name == top || recursive })
	return seen, err
}

func differences(before, now map[string]file.Info) []file.Change {
	var changes []file.Change
	for _, p := range slices.Sorted(maps.Keys(now)) {
		was, existed := before[p]
		is := now[p]
		switch {
		case !existed:
			changes = append(changes, file.Change{Kind: file.Created, Path: is.Path, At: is.ModifiedAt})
		case is.Kind != file.Directory && (was.Size != is.Size || !was.ModifiedAt.Equal(is.ModifiedAt)):
			changes = append(changes, file.Change{Kind: file.Written, Path: is.Path, At: is.ModifiedAt})
		case was.Mode != is.Mode:
			changes = append(changes, file.Change{Kind: file.Changed, Path: is.Path, At: time.Now()})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(before)) {
		if _, still := now[p]; !still {
			changes = append(changes, file.Change{Kind: file.Removed, Path: before[p].Path, At: time.Now()})
		}
	}
	return changes
}

// TailFile implements file.Guest.
func (g *Files) TailFile(ctx context.Context, p string, lines int, follow bool, w io.Writer) error {
	text, err := g.root.ReadFile(local(p))
	if err != nil {
		return agentError(p, err)
	}
	if _, err := w.Write(lastLines(text, lines)); err != nil || !follow {
		return err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for at := len(text); ; at = len(text) {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if text, err = g.root.ReadFile(local(p)); err != nil {
			return agentError(p, err)
		}
		if _, err := w.Write(text[min(at, len(text)):]); err != nil {
			return err
		}
	}
}

func lastLines(text []byte, lines int) []byte {
	if lines < 0 {
		return text
	}
	all := bytes.SplitAfter(text, []byte("\n"))
	if len(all[len(all)-1]) == 0 {
		all = all[:len(all)-1]
	}
	return bytes.Join(all[max(0, len(all)-lines):], nil)
}
