//go:build linux && amd64

package qemu

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
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
		return nil, errGone(h.ID)
	}
	proc, err := jail.Open(jail.Identity{PID: h.PID, StartTime: h.StartTime, BootID: h.BootID, Exe: h.Exe}, h.ID)
	if errors.Is(err, jail.ErrGone) {
		return nil, errGone(h.ID)
	}
	if err != nil {
		return nil, err
	}
	sockets, err := socketLinks()
	if err == nil && !jail.HoldsFile(h.PID, sockets[h.Socket]) {
		err = errGone(h.ID)
	}
	if err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	said, err := findWords(h.Dir, h.PID)
	if err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	m := d.newMachine(h, proc, said)
	if err := m.recognise(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// recognise makes the control connection, and compares or notes the version.
func (m *machine) recognise(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	q, err := m.connect(ctx)
	if err != nil {
		return m.explain(err)
	}
	if m.handle.Version != "" && m.handle.Version != q.version {
		return errGone(m.handle.ID)
	}
	m.handle.Version = q.version
	return nil
}

// List implements vmm.Driver. A process is ours if it runs our QEMU, carries
// our marker with a directory below root, and holds the control socket that
// lies there, where only root can make one.
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
