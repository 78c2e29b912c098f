package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	contract "github.com/hatchvm/hatch/internal/vmm"
)

// rawFire is a Firecracker that a script would drive over its API: without its jailer,
// or in the smallest possible jail.
type rawFire struct {
	binary string
	jailer string // "" for none
	spec   contract.Spec

	cmd    *exec.Cmd
	in     *os.File // the console
	out    *os.File
	client *http.Client
}

// start starts the process and waits until it accepts requests.
func (r *rawFire) start(ctx context.Context) error {
	if err := r.makeDir(); err != nil {
		return err
	}
	if r.jailer != "" {
		defer func() { _ = unix.Unmount(r.inside(memoryName), unix.MNT_DETACH) }() // the process has its own mount
	}
	socket := r.inside(socketName)
	theirIn, in, err := os.Pipe()
	if err != nil {
		return err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return err
	}
	r.in, r.out = in, out
	own := []string{"--api-sock", socketName, "--log-path", logName} // otherwise the log is on the console
	args := append([]string{r.binary, "--id", "raw"}, own...)
	if r.jailer != "" {
		user := strconv.Itoa(r.spec.UID)
		args = []string{r.jailer, "--id", "raw", "--exec-file", r.binary, "--uid", user, "--gid", user, "--chroot-base-dir", r.jail(), "--"}
		args = append(args, own...)
	}
	r.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	r.cmd.Dir, r.cmd.Stdin, r.cmd.Stdout = r.inside(""), theirIn, theirOut
	err = r.cmd.Start()
	_, _ = theirIn.Close(), theirOut.Close()
	if err != nil {
		r.cmd = nil
		return err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	r.client = &http.Client{Transport: &http.Transport{DialContext: dial}}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		conn, err := dial(ctx, "", "")
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Files in the process's directory.
const (
	socketName = "raw.sock"
	vsockName  = "vsock"
	kernelName = "kernel"
	memoryName = "memory"
	stateName  = "state"
	logName    = "log"
)

func (r *rawFire) jail() string { return filepath.Join(r.spec.Dir, "raw") }

// inside returns the path of a file in the process's directory, which is the root of
// its jail.
func (r *rawFire) inside(name string) string {
	if r.jailer == "" {
		return filepath.Join(r.jail(), name)
	}
	return filepath.Join(r.jail(), filepath.Base(r.binary), "raw", "root", name)
}

// makeDir makes the process's directory, with the machine's files and its saved
// state, if there is any.
func (r *rawFire) makeDir() error {
	if err := os.RemoveAll(r.jail()); err != nil {
		return err
	}
	if err := os.MkdirAll(r.inside(""), 0o700); err != nil {
		return err
	}
	for name, path := range r.files() {
		if err := os.Link(path, r.inside(name)); err != nil {
			return err
		}
	}
	if err := errors.Join(os.WriteFile(r.inside(logName), nil, 0o600), os.Chown(r.inside(logName), r.spec.UID, r.spec.GID)); err != nil {
		return err
	}
	memory := r.inside(memoryName) // on another file system
	if r.jailer == "" {
		return os.Symlink(r.spec.Memory, memory)
	}
	for _, d := range r.spec.Disks {
		if err := os.Chown(d.Path, r.spec.UID, r.spec.GID); err != nil {
			return err
		}
	}
	if err := os.WriteFile(memory, nil, 0o600); err != nil {
		return err
	}
	return errors.Join(unix.Mount(r.spec.Memory, memory, "", unix.MS_BIND, ""), unix.Mount("", memory, "", unix.MS_PRIVATE, ""))
}

func (r *rawFire) files() map[string]string {
	files := map[string]string{kernelName: r.spec.Kernel}
	for _, d := range r.spec.Disks {
		files[d.Serial] = d.Path
	}
	saved := filepath.Join(r.spec.Dir, stateName)
	if _, err := os.Stat(saved); err == nil {
		files[stateName] = saved
	}
	return files
}

// kill kills the process, if there is one, and waits for its end.
func (r *rawFire) kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // it was killed
	r.client.CloseIdleConnections()
	_, _ = r.in.Close(), r.out.Close()
	r.cmd = nil
}

// body is the body of a request.
type body map[string]any

func (r *rawFire) call(ctx context.Context, method, path string, b body) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s", method, path, answer)
	}
	return err
}

// create boots the guest, and waits for its first output.
func (r *rawFire) create(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	type request struct {
		path string
		body body
	}
	requests := []request{
		{"/machine-config", body{"vcpu_count": r.spec.VCPUs, "mem_size_mib": r.spec.MemMiB, "track_dirty_pages": true}},
		{"/boot-source", body{"kernel_image_path": kernelName, "boot_args": r.spec.Cmdline}},
	}
	for _, d := range r.spec.Disks {
		requests = append(requests, request{"/drives/" + d.Serial, body{"drive_id": d.Serial, "path_on_host": d.Serial, "is_read_only": d.ReadOnly, "is_root_device": false}})
	}
	requests = append(requests,
		request{"/network-interfaces/net0", body{"iface_id": "net0", "host_dev_name": rawTAP, "guest_mac": fireMAC.String()}},
		request{"/vsock", body{"guest_cid": 3, "uds_path": vsockName}},
		request{"/entropy", body{}},
		request{"/actions", body{"action_type": "InstanceStart"}})
	for _, q := range requests {
		if err := r.call(ctx, http.MethodPut, q.path, q.body); err != nil {
			return err
		}
	}
	return r.firstByte("")
}

func (r *rawFire) firstByte(line string) error {
	if _, err := io.WriteString(r.in, line); err != nil {
		return err
	}
	_, err := r.out.Read(make([]byte, 1))
	return err
}

func (r *rawFire) sleep(ctx context.Context) error {
	if err := r.call(ctx, http.MethodPatch, "/vm", body{"state": "Paused"}); err != nil {
		return err
	}
	if err := r.call(ctx, http.MethodPut, "/snapshot/create", body{"snapshot_type": "Diff", "snapshot_path": stateName, "mem_file_path": memoryName}); err != nil {
		return err
	}
	r.kill()
	return os.Rename(r.inside(stateName), filepath.Join(r.spec.Dir, stateName))
}

func (r *rawFire) wake(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	load := body{
		"snapshot_path": stateName, "mem_backend": body{"backend_type": "File", "backend_path": memoryName},
		"enable_diff_snapshots": true, "resume_vm": true,
	}
	if err := r.call(ctx, http.MethodPut, "/snapshot/load", load); err != nil {
		return err
	}
	return r.firstByte(anyLine)
}
