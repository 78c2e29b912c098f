package agent

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/identity"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Bounds of what is read of cloud-init's result.
const (
	maxResultFile = 256 << 10
	maxErrors     = 8
	maxErrorText  = 512
)

// watchCloudInit posts cloud-init's state now and after each change.
func (a *Agent) watchCloudInit(ctx context.Context, root string) {
	if !identity.HasCloudInit(root) {
		a.status.postCloudInit(wire.CloudInit{Status: wire.CloudInitAbsent})
		return
	}
	a.status.postCloudInit(cloudInit(root))
	w, err := watchRun(root)
	if err != nil {
		a.log.Error("cannot watch cloud-init", "err", err)
		return
	}
	defer func() { _ = w.events.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = w.events.SetReadDeadline(time.Now()) })
	defer stop()
	for {
		w.follow()
		a.status.postCloudInit(cloudInit(root))
		if err := w.wait(); err != nil {
			return
		}
	}
}

// cloudInit reads the state from the files that cloud-init leaves. Until the
// first of them is there, it is about to run.
func cloudInit(root string) wire.CloudInit {
	for _, path := range []string{"run/cloud-init/disabled", "etc/cloud/cloud-init.disabled"} {
		if _, err := os.Stat(filepath.Join(root, path)); err == nil {
			return wire.CloudInit{Status: wire.CloudInitDisabled}
		}
	}
	f, err := os.Open(filepath.Join(root, "run/cloud-init/result.json"))
	if err != nil {
		return wire.CloudInit{Status: wire.CloudInitRunning}
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxResultFile))
	if err != nil {
		return wire.CloudInit{Status: wire.CloudInitError, Errors: []string{"cannot read cloud-init's result: " + err.Error()}}
	}
	return parseResult(raw)
}

// parseResult reads cloud-init's result.json.
func parseResult(raw []byte) wire.CloudInit {
	var result struct {
		V1 struct {
			Errors []string `json:"errors"`
		} `json:"v1"`
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return wire.CloudInit{Status: wire.CloudInitError, Errors: []string{"cloud-init's result is not understood"}}
	}
	if len(result.V1.Errors) == 0 {
		return wire.CloudInit{Status: wire.CloudInitDone}
	}
	c := wire.CloudInit{Status: wire.CloudInitError}
	for _, e := range result.V1.Errors[:min(maxErrors, len(result.V1.Errors))] {
		c.Errors = append(c.Errors, strings.ToValidUTF8(e[:min(maxErrorText, len(e))], ""))
	}
	return c
}

// runWatch hears of changes in /run/cloud-init, also before it exists.
type runWatch struct {
	events *os.File
	fd     int
	run    string
	above  int // watch of /run, until the directory below it is there
}

const changes = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_DELETE

func watchRun(root string) (*runWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &runWatch{events: os.NewFile(uintptr(fd), "inotify"), fd: fd, run: filepath.Join(root, "run")}
	if w.above, err = unix.InotifyAddWatch(fd, w.run, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		_ = w.events.Close()
		return nil, err
	}
	return w, nil
}

// follow watches /run/cloud-init itself once it is there.
func (w *runWatch) follow() {
	if w.above < 0 {
		return
	}
	if _, err := unix.InotifyAddWatch(w.fd, filepath.Join(w.run, "cloud-init"), changes); err == nil {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(w.above))
		w.above = -1
	}
}

// wait returns when something has changed.
func (w *runWatch) wait() error {
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	_, err := w.events.Read(buf)
	return err
}
