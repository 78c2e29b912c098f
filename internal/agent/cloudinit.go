package agent

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/identity"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Limits of cloud-init's result.
const (
	maxResultFile = 256 << 10 // bytes read
	maxErrors     = 8         // errors reported
	maxErrorText  = 512       // bytes of each
)

// watchCloudInit updates the status with cloud-init's state, now and after each change.
func (a *Agent) watchCloudInit(ctx context.Context, root string) {
	if !identity.HasCloudInit(root) {
		a.status.setCloudInit(wire.CloudInit{Status: wire.CloudInitAbsent})
		return
	}
	a.status.setCloudInit(cloudInit(root))
	w, err := watchRun(root)
	if err != nil {
		a.log.Error("cannot watch cloud-init", logkey.Error, err)
		return
	}
	defer func() { _ = w.events.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = w.events.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		w.follow()
		a.status.setCloudInit(cloudInit(root))
		if _, err := w.events.Read(buf); err != nil {
			return
		}
	}
}

// cloudInit reads the state from cloud-init's files. It counts as running until it
// has written the first one.
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
	return withComplaints(parseResult(raw), root)
}

// parseResult reads cloud-init's result.json.
func parseResult(raw []byte) wire.CloudInit {
	var result struct {
		V1 struct {
			Errors []string `json:"errors"`
		} `json:"v1"`
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return wire.CloudInit{Status: wire.CloudInitError, Errors: []string{"cannot parse cloud-init's result"}}
	}
	if len(result.V1.Errors) == 0 {
		return wire.CloudInit{Status: wire.CloudInitDone}
	}
	c := wire.CloudInit{Status: wire.CloudInitError}
	for _, e := range result.V1.Errors {
		c.Errors = addText(c.Errors, e)
	}
	return c
}

// runWatch watches /run/cloud-init, and before that exists its parent directory.
type runWatch struct {
	events *os.File
	fd     int
	run    string
	parent int // inotify watch of /run, until /run/cloud-init exists; then -1
}

const changes = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_DELETE

func watchRun(root string) (*runWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &runWatch{events: os.NewFile(uintptr(fd), "inotify"), fd: fd, run: filepath.Join(root, "run")}
	if w.parent, err = unix.InotifyAddWatch(fd, w.run, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		_ = w.events.Close()
		return nil, err
	}
	return w, nil
}

// follow watches /run/cloud-init itself once it exists.
func (w *runWatch) follow() {
	if w.parent < 0 {
		return
	}
	if _, err := unix.InotifyAddWatch(w.fd, filepath.Join(w.run, "cloud-init"), changes); err == nil {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(w.parent))
		w.parent = -1
	}
}
