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
	"time"

	contract "github.com/hatchvm/hatch/internal/vmm"
)

// rawFire is a Firecracker without a jail, driven over its API as a script
// would do it.
type rawFire struct {
	binary string
	spec   contract.Spec

	cmd    *exec.Cmd
	in     *os.File // the console
	out    *os.File
	client *http.Client
}

// start starts the process and returns once it answers.
func (r *rawFire) start(ctx context.Context) error {
	socket := filepath.Join(r.spec.Dir, "raw.sock")
	for _, path := range []string{socket, filepath.Join(r.spec.Dir, "vsock")} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		return err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return err
	}
	r.in, r.out = in, out
	r.cmd = exec.CommandContext(ctx, r.binary, "--id", "raw", "--api-sock", socket)
	r.cmd.Dir, r.cmd.Stdin, r.cmd.Stdout = r.spec.Dir, theirIn, theirOut
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

// kill ends the process, if there is one, and returns when it is gone.
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

// body is that of a request.
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
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s", method, path, said)
	}
	return err
}

// create boots the guest, and returns when it has said something.
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
		{"/boot-source", body{"kernel_image_path": r.spec.Kernel, "boot_args": r.spec.Cmdline}},
	}
	for _, d := range r.spec.Disks {
		requests = append(requests, request{"/drives/" + d.Serial, body{"drive_id": d.Serial, "path_on_host": d.Path, "is_read_only": d.ReadOnly, "is_root_device": false}})
	}
	requests = append(requests,
		request{"/vsock", body{"guest_cid": 3, "uds_path": "vsock"}},
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
	if err := r.call(ctx, http.MethodPut, "/snapshot/create", body{"snapshot_type": "Diff", "snapshot_path": "state", "mem_file_path": r.spec.Memory}); err != nil {
		return err
	}
	r.kill()
	return nil
}

func (r *rawFire) wake(ctx context.Context) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	load := body{
		"snapshot_path": "state", "mem_backend": body{"backend_type": "File", "backend_path": r.spec.Memory},
		"enable_diff_snapshots": true, "resume_vm": true,
	}
	if err := r.call(ctx, http.MethodPut, "/snapshot/load", load); err != nil {
		return err
	}
	return r.firstByte(anyLine)
}
