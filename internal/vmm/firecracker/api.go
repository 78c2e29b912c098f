//go:build linux && amd64

package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxAnswer is the largest answer that is read, in bytes.
const maxAnswer = 1 << 20

// api makes requests to one Firecracker over the socket in its root directory. The
// process may be able to write there, so the socket's path is not followed to
// anything outside.
type api struct {
	root   string
	client *http.Client
}

func newAPI(root string) *api {
	return &api{root: root, client: &http.Client{Transport: transport(root, false)}}
}

func transport(root string, keepAlive bool) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: !keepAlive, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialWithin(ctx, root, apiSocket) },
	}
}

// withKeepAlive returns an api that makes all its requests over one connection, which
// closeConn closes.
func (a *api) withKeepAlive() (b *api, closeConn func()) {
	t := transport(a.root, true)
	return &api{root: a.root, client: &http.Client{Transport: t}}, t.CloseIdleConnections
}

// dialWithin connects to the socket of this name in dir, which must not be a symbolic
// link.
func dialWithin(ctx context.Context, dir, name string) (net.Conn, error) {
	fd, err := openWithin(dir, name, unix.O_PATH, unix.S_IFSOCK)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	return new(net.Dialer).DialContext(ctx, "unix", filepath.Join("/proc/self/fd", strconv.Itoa(fd)))
}

// openWithin opens the file of this name in dir, if it has the type kind (S_IF…) and
// is not a symbolic link.
func openWithin(dir, name string, flags uint64, kind uint32) (fd int, err error) {
	folder, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(folder) }()
	fd, err = unix.Openat2(folder, name, &unix.OpenHow{
		Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != kind {
		err = fmt.Errorf("%s has the file type %#o instead of %#o", name, st.Mode&unix.S_IFMT, kind)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// refusal is an answer with an error status.
type refusal struct {
	status  int
	Message string `json:"fault_message"`
}

func (r *refusal) Error() string {
	return fmt.Sprintf("Firecracker refuses (%d): %s", r.status, strings.TrimSpace(r.Message))
}

// call makes one request. in and out may be nil.
func (a *api) call(ctx context.Context, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, &body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("cannot %s %s: %w", strings.ToLower(method), path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("cannot read the answer to %s: %w", path, err)
	}
	if resp.StatusCode >= 300 {
		refused := &refusal{status: resp.StatusCode}
		_ = json.Unmarshal(text, refused) // an answer in another format has no message
		return fmt.Errorf("cannot %s %s: %w", strings.ToLower(method), path, refused)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("cannot read the answer to %s: %w", path, err)
	}
	return nil
}

func (a *api) put(ctx context.Context, path string, in any) error {
	return a.call(ctx, http.MethodPut, path, in, nil)
}

func (a *api) action(ctx context.Context, kind string) error {
	return a.put(ctx, "/actions", map[string]string{"action_type": kind})
}

// instance is the answer to GET /.
type instance struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Version string `json:"vmm_version"`
}

// States of an instance.
const (
	stateNew    = "Not started"
	statePaused = "Paused"
)

func (a *api) instance(ctx context.Context) (instance, error) {
	var i instance
	err := a.call(ctx, http.MethodGet, "/", nil, &i)
	return i, err
}

// setState pauses or resumes the CPUs; state is "Paused" or "Resumed". It is no error
// if they are in that state already.
func (a *api) setState(ctx context.Context, state string) error {
	err := a.call(ctx, http.MethodPatch, "/vm", map[string]string{"state": state}, nil)
	if _, ok := errors.AsType[*refusal](err); !ok {
		return err
	}
	now, instanceErr := a.instance(ctx)
	if instanceErr == nil && (now.State == statePaused) == (state == statePaused) && now.State != stateNew {
		return nil
	}
	return err
}
