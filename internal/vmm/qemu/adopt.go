//go:build linux && amd64

package qemu

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

func handleOf(id, dir string, p jail.Identity, version string) vmm.Handle {
	return vmm.Handle{
		Driver: Name, ID: id, PID: p.PID, StartTime: p.StartTime, BootID: p.BootID, Exe: p.Exe,
		Dir: dir, Socket: filepath.Join(dir, qmpSocket), Version: version,
	}
}

// Adopt implements vmm.Driver. An empty h.Version, as List gives it, matches
// every version.
func (d *Driver) Adopt(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	if h.Driver != Name || h.Socket != filepath.Join(h.Dir, qmpSocket) {
		return nil, process.Gone(h.ID)
	}
	proc, err := process.Open(h, d.cgroups)
	if err != nil {
		return nil, err
	}
	sockets, err := socketLinks()
	if err == nil && !jail.HoldsFile(h.PID, sockets[h.Socket]) {
		err = process.Gone(h.ID)
	}
	if err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	stderr, err := adoptStderr(h.Dir, h.PID)
	if err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	m := d.newMachine(h, proc, stderr)
	err = m.checkVersion(ctx, process.AdoptTimeout)
	if err != nil && !vmm.IsSilent(err) {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// checkVersion makes the control connection and compares QEMU's version with the
// handle's, or sets it there if it is empty.
func (m *machine) checkVersion(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	q, err := m.connect(ctx)
	if err != nil {
		return m.explain(err)
	}
	if m.Handle().Version != q.version {
		return process.Gone(m.Handle().ID)
	}
	return nil
}

// List implements vmm.Driver. A process is ours if it runs our QEMU, has our marker
// with a directory below root among its arguments, and has the control socket in
// that directory open, where only root can make one.
func (d *Driver) List(_ context.Context, root string) ([]vmm.Handle, error) {
	found, err := jail.Find(d.binary, func(args []string) bool {
		_, dir, ok := parseMarker(args)
		return ok && isBelow(root, dir)
	})
	if err != nil {
		return nil, err
	}
	sockets, err := socketLinks()
	if err != nil {
		return nil, err
	}
	var ours []vmm.Handle
	for _, p := range found {
		id, dir, _ := parseMarker(p.Args)
		if jail.HoldsFile(p.Identity.PID, sockets[filepath.Join(dir, qmpSocket)]) {
			ours = append(ours, handleOf(id, dir, p.Identity, ""))
		}
	}
	return ours, nil
}

func isBelow(root, dir string) bool {
	rel, err := filepath.Rel(root, dir)
	return err == nil && rel != "." && filepath.IsLocal(rel)
}
